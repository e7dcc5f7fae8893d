"""What a running script finds under its old names: flags, settings, names, attributes."""

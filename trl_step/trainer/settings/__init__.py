"""What the settings of a step may be: each by itself, several together, and while a run goes on."""

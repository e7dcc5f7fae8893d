"""What trainers with `train()` that draw their own answers are made of: settings, scores, metrics, tables, files."""

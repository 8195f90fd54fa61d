"""The commands that need the model."""

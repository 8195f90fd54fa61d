"""The Errata workers: they write corrections into the model's weights and probe what that does."""

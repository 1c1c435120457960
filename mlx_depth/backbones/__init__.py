"""Vision transformers that turn images into tokens."""

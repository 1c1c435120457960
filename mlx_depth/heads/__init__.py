"""Decoders that turn tokens into dense maps."""

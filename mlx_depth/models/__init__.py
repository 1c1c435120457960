"""One folder a model family."""

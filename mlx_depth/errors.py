"""The errors that a user can cause. Each message ends with the next step; the command line prints it alone."""


class MlxDepthError(Exception):
    """Base of every error that mlx-depth raises on purpose."""


class OptionError(MlxDepthError, ValueError):
    """An argument, or a combination of arguments, that cannot work."""


class ImageError(MlxDepthError, ValueError):
    """An image that cannot be read."""


class ModelNotFoundError(MlxDepthError, LookupError):
    """A model name, folder or Hub repository that does not exist or cannot be reached."""


class CheckpointError(MlxDepthError, ValueError):
    """A checkpoint whose config or tensors are not exactly what the model needs."""


class SaveError(MlxDepthError, OSError):
    """A result that cannot be written."""

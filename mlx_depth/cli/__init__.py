"""The command ``mlx-depth``: a file a group of verbs, each verb one API call."""

from mlx_depth.cli.command import main

__all__ = ["main"]

"""Imports mlx_depth before any test imports mlx.core, so that an installed OpenBLAS is used."""

import mlx_depth  # noqa: F401

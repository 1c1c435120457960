"""Scenes as files: point clouds, cameras, meshes, Gaussians, and a page to look at them."""

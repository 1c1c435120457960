"""Cameras, poses and similarities in plain numpy; knows no model."""

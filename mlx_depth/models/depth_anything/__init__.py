"""Depth Anything V1 and V2."""

"""Depth Pro."""

"""Depth Anything 3: any number of views, with cameras; one view; and both, in metres."""

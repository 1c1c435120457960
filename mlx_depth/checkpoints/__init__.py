"""From what the user names to weights that a network takes."""

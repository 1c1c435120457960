"""Building blocks that no model owns."""

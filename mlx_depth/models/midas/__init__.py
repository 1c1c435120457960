"""MiDaS 2.1 small; MiDaS 3.0 is in ``models/dpt``."""

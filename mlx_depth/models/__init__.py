"""One home a family: its config, its network, its weight tables."""

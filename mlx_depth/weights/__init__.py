"""Names, layouts and containers of weights; nothing here knows a model."""

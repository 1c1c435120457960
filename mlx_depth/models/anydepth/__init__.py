"""AnyDepth: DINOv3 and the Simple Depth Transformer."""

"""DPT: MiDaS 3.0 with a ViT or a hybrid, and DINOv2's metric depth."""

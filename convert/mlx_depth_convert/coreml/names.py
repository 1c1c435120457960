"""What an app sees of a package: the names of its images and its function."""

IMAGE, DEPTH, CONFIDENCE, SKY, COLORS = "image", "depth", "confidence", "sky", "colors"
MAIN = "main"  # of a package with one size

"""What an app sees of a package: the names of its images and its function."""

IMAGE, DEPTH, COLORS = "image", "depth", "colors"
MAIN = "main"  # of a package with one size

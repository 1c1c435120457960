"""Files in and out: photos, results, color maps."""

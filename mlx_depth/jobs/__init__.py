"""Many predictions: folders of photos, several processes."""

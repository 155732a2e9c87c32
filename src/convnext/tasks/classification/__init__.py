"""Which one of the classes is on the image."""

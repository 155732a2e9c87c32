"""Shards of images, local and remote."""

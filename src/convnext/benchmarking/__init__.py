"""Measure how fast networks are on this machine, next to timm's and to the machine's peak rates."""

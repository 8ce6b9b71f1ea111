"""Measurements against named peers: both sides timed in one run, repeated, medians quoted."""

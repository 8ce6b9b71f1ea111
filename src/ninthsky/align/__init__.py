"""Checkpoint + policy -> a checkpoint whose generated answers changed, with the proof: what it says before and after."""

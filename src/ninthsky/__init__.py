"""Ninthsky: trains a foundation model end to end, and keeps it training."""

__version__ = "0.1.0"

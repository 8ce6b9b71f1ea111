"""Signals -> named-axis arrays -> patches -> the same decoder -> answers in text."""

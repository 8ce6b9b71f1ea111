"""Quality rules: a table of thresholds over figures that are counted in one pass over Arrow's bytes, without copies."""

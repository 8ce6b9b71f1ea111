"""The life of a rank: prepared, assigned, training, broken, assigned anew."""

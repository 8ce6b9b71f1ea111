"""The process of one rank of a guarded job: prepared, assigned, training, broken, assigned anew."""

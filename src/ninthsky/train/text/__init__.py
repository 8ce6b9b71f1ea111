"""Which tokens a step reads, and what the model makes of text that it has not seen."""

"""How model and batch are cut over ranks: one frozen mesh, and what it does to each weight."""

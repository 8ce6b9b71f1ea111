"""Tokens to a checkpoint, over many ranks. `loop.fit` trains in one process, `loop.Trainer` is one rank of many."""

"""What survives a rank: checkpoints on disk, shards in memory, copies on other hosts."""

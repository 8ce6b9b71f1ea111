"""One process per host: starts ranks and spares, reads their records, holds shards and ships copies. It decides nothing."""

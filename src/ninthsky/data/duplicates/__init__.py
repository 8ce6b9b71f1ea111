"""Exact and near duplicates, and blocks that many pages share, over any number of shards in bounded memory.

    leave(folder, rows, texts, ranks, sites)              the map, once per shard: sorted runs of keys
    find(folders, work, threshold, pages, share)          the reduce: partition by partition of the keys, then the clusters

The reduce holds one partition at a time, one byte a document, and about 100 bytes for each that has a near duplicate.
"""

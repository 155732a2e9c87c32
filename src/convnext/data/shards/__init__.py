"""Remote files and the order of what is stored in shards; for every task."""

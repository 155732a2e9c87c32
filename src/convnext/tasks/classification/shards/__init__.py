"""Classification data in WebDataset shards: reading, indexing, converting."""

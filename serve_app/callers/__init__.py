"""Who calls: the keys that a server knows, where they are kept, and what the holder of each may do."""

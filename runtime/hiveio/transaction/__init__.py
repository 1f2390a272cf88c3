"""The transaction engine: the log decides. docs/transactions.md has the protocol, cache.py the map of keys."""

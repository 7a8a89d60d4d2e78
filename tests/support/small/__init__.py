"""Small inputs and settings of the project's own: shards, curations, training runs."""

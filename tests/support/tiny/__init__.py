"""Published models of the real classes with random weights, small enough for a test."""

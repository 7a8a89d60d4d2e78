"""Stand-ins for what a test cannot have: servers, and a package that is not installed."""

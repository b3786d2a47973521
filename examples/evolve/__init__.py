"""A help desk whose schema changes twelve times while three sites work."""

"""What the newsroom does from the command line."""

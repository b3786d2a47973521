"""Applications to try things on. Each is complete without the rest of the repository."""

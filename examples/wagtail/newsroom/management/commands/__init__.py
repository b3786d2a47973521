"""One verb per file; each is run with DATABASE_URL by `python -m django VERB`."""

"""syncagent: multi-master for the PostgreSQL you already run."""

__version__ = "0.1.0"

"""MLflow at several sites: its tracking store on SQLAlchemy, whose tables were not made for this."""

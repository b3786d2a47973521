"""How the site's database is named, for two drivers: verbs speak through libpq, the agent through asyncpg.

asyncpg reads URLs only, and takes a parameter it does not know for a setting of the server, which the server refuses.
"""

from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from syncagent.errors import UsageError

_LIBPQ_ONLY = frozenset(
    (
        *(
            "application_name",
            "fallback_application_name",
            "client_encoding",
            "connect_timeout",
            "channel_binding",
        ),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        *("gssencmode", "requirepeer", "require_auth", "load_balance_hosts", "sslcompression", "sslsni"),
    )
)
"""What says how libpq connects, and asyncpg has no word for."""


def read(dsn: str) -> dict[str, Any]:
    """The parts of a dsn; a UsageError never shows it, for it may hold a password."""
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise UsageError(
            "the dsn cannot be read", hint="write it as postgresql://user:password@host:5432/database"
        ) from None


def as_url(dsn: str) -> str:
    """The same for asyncpg, also if it was `host=... dbname=...`, libpq's own form. Raises UsageError."""
    parts = {name: str(value) for name, value in read(dsn).items() if name not in _LIBPQ_ONLY}
    user, password, database = (parts.pop(name, "") for name in ("user", "password", "dbname"))
    login = (
        quote(user, safe="") + (f":{quote(password, safe='')}" if password else "") + ("@" if user else "")
    )
    if "host" in parts:
        parts["host"] = ",".join(f"[{host}]" if ":" in host else host for host in parts["host"].split(","))
    path = f"/{quote(database, safe='')}" if database else ""
    return f"postgresql://{login}{path}?{urlencode(parts)}".rstrip("?")

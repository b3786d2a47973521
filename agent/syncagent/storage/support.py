"""What a support bundle tells of a site, and the scrubber that all of it goes through.

Invariant: no row of the application is read, and no text that may hold a secret: of the server's settings those that are
numbers and switches, of sessions what they wait for and not what they say.
"""

import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from syncagent import __version__
from syncagent.storage import dsns, inspection
from syncagent.storage.commands import Connection

Row = dict[str, Any]
HIDDEN = "(left out)"
_SHORTEST = 3
"""A shorter password would be found everywhere."""


def versions() -> dict[str, Any]:
    """Of this command, what it is made of, and the host."""
    found = {}
    for line in metadata.requires("syncagent") or []:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        if "extra ==" not in line:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                found[name] = "missing"
    return {
        "syncagent": __version__,
        "python": sys.version,
        "system": platform.platform(),
        "packages": dict(sorted(found.items())),
    }


def _all(query: str) -> Callable[[Connection], list[Row]]:
    return lambda connection: connection.execute(query.encode()).fetchall()


def _plans(connection: Connection) -> dict[str, list[str]]:
    """How the server would go about what is asked most, and about each attached table's rows by key."""
    asked = {name: f"select * from syncagent.{name}" for name in ("status", "lag", "replicated_table")}
    for row in connection.execute(
        "select format('select * from %I.%I where (%s) = (%s)', schema_name, table_name, k.names, k.nothing) as query,"
        " format('%I.%I', schema_name, table_name) as name from syncagent.replicated r cross join lateral"
        " (select string_agg(quote_ident(u.c), ', ') as names, string_agg('null', ', ') as nothing"
        " from unnest(r.key_columns) as u (c)) as k where r.relation::oid in (select oid from pg_class) order by r.id"
    ).fetchall():
        asked[row["name"]] = row["query"]
    return {
        name: [line["QUERY PLAN"] for line in connection.execute(f"explain {query}".encode()).fetchall()]
        for name, query in asked.items()
    }


PARTS: Mapping[str, Callable[[Connection], object]] = MappingProxyType(
    {
        "status": inspection.status,
        "catalog": _all("select * from syncagent.member order by node"),
        "tables": inspection.tables,
        "schema": _all("select * from syncagent.schema_version"),
        "lag": _all("select * from syncagent.lag"),
        "proof": _all(
            "select at, site, equal, tables, rows, complete, open, since, times from syncagent.proof order by at desc limit 100"
        ),
        "conflicts": _all(
            "select table_name, kind, strategy, winner, loser, open, count(*), max(noticed_at) as last"
            " from syncagent.conflict group by 1, 2, 3, 4, 5, 6 order by last desc"
        ),
        "parked": _all(
            "select table_name, origin, sqlstate, count(*), min(since) as since from syncagent.parked group by 1, 2, 3 order by since"
        ),
        "repairs": _all(
            "select schema_name, table_name, cause, source, count(*), max(at) as last from syncagent.repair group by 1, 2, 3, 4 order by last desc"
        ),
        "server": _all(
            "select version(), pg_postmaster_start_time() as started, pg_is_in_recovery() as standby, getdatabaseencoding() as encoding,"
            " pg_database_size(current_database()) as bytes, now()"
        ),
        # What is text may hold a password, as primary_conninfo does.
        "server_settings": _all(
            "select name, setting, unit, source from pg_settings where vartype <> 'string' and source <> 'default'"
            " or name in ('server_version', 'TimeZone', 'shared_preload_libraries', 'lc_messages') order by name"
        ),
        "sizes": _all(
            "select c.relname as name, c.relkind::text as kind, pg_total_relation_size(c.oid) as bytes, s.n_live_tup as rows, s.n_dead_tup as dead,"
            " s.last_autovacuum, s.last_autoanalyze, s.seq_scan, s.idx_scan"
            " from pg_class c left join pg_stat_all_tables s on s.relid = c.oid"
            " where c.relnamespace = 'syncagent'::regnamespace and c.relkind in ('r', 'p', 'S') order by 3 desc, 1"
        ),
        "attached_sizes": _all(
            "select format('%I.%I', r.schema_name, r.table_name) as name, pg_total_relation_size(c.oid) as bytes, s.n_live_tup as rows,"
            " s.n_dead_tup as dead, s.n_tup_ins, s.n_tup_upd, s.n_tup_del, s.last_autovacuum, s.last_autoanalyze"
            " from syncagent.replicated r join pg_class c on c.oid = r.relation left join pg_stat_all_tables s on s.relid = c.oid order by 1"
        ),
        "sessions": _all(
            "select pid, usename, application_name, state, wait_event_type, wait_event, backend_start, xact_start, state_change,"
            " pg_blocking_pids(pid) as blocked_by from pg_stat_activity where datname = current_database() order by xact_start"
        ),
        "plans": _plans,
    }
)
"""Each a file of the bundle."""


# ---- secrets

_LOOKS_SECRET = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\bsa1-[A-Za-z0-9_-]{8,}"),
    re.compile(r"(?<=://)[^\s/@:\"']*:[^\s@]+(?=@)"),
    re.compile(
        r"(?i)(?:passw(?:or)?d|passphrase|secret|token)\\?[\"']?\s*[=:]\s*\\?(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s,;\"'}]+)"
    ),
    re.compile(r"(?i)password\s+(?:E|U&)?'(?:[^'\n]|'')*'"),
)
"""Keys, tokens, the login of a URL, and what is said to be a password, by a program or in SQL."""

_QUOTES_ROWS = (
    re.compile(r"(?<=\)=\()[^\n]*?(?=\) (?:already exists|is not present|is still referenced|conflicts))"),
    re.compile(r"(?<=Failing row contains \()[^\n\"]*"),
)
"""Errors of the server in which values of rows stand."""


class Scrubber:
    """Knows this site's secrets, and what secrets look like."""

    def __init__(self, secrets: Iterable[str]) -> None:
        spelled = {form for secret in secrets for form in (secret, quote(secret, safe=""), _escaped(secret))}
        self._known = sorted((form for form in spelled if len(form) >= _SHORTEST), key=len, reverse=True)

    def scrub(self, text: str) -> tuple[str, int]:
        """The text without them, and how often something was left out."""
        count = 0
        for secret in self._known:
            count += text.count(secret)
            text = text.replace(secret, HIDDEN)
        for pattern in (*_LOOKS_SECRET, *_QUOTES_ROWS):
            text, found = pattern.subn(HIDDEN, text)
            count += found
        return text, count


def _escaped(secret: str) -> str:
    """As JSON and TOML write it."""
    return secret.replace("\\", "\\\\").replace('"', '\\"')


def passwords(dsn: str) -> set[str]:
    """What a dsn holds that is secret, and the password file that it names."""
    parts = dsns.read(dsn)
    found = {str(parts[name]) for name in ("password", "sslpassword") if parts.get(name)}
    return found | (_of_file(Path(str(parts["passfile"]))) if "passfile" in parts else set())


def _of_file(path: Path) -> set[str]:
    """The passwords of a password file: what follows the fourth colon."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return set()
    fields = [re.split(r"(?<!\\):", line, maxsplit=4) for line in lines if not line.startswith("#")]
    return {re.sub(r"\\(.)", r"\1", parts[4]) for parts in fields if len(parts) == 5}

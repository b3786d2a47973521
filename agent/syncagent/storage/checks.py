"""What `syncagent doctor` looks at in a site's database.

Invariant: it only reads; every finding says what is wrong in the words of whoever must mend it, and how.
"""

from collections.abc import Iterator
from uuid import UUID

from syncagent import __version__
from syncagent.core import clock as clocks
from syncagent.core import limits
from syncagent.storage import drift, pooler
from syncagent.storage.bypass import bypass
from syncagent.storage.commands import Connection, agent_runs
from syncagent.storage.drift import Finding
from syncagent.storage.grants import grants
from syncagent.storage.installation import apply_grant, may_apply
from syncagent.storage.orphans import orphans
from syncagent.storage.room import room
from syncagent.storage.schema import typed, versions
from syncagent.storage.session import POOLER_HINT

_LOG_BYTES = 256 * 1024 * 1024
"""A log larger than this is not being folded or trimmed."""
_OPEN_SECONDS = 300
"""A transaction open for longer keeps the log and the versions from shrinking."""
_BEHIND_SECONDS = 300
"""Who has lacked something for longer is not merely slow."""


def examine(connection: Connection, dsn: str, max_skew: float | None) -> list[Finding]:
    """Everything that can be seen from the database, to which the dsn has led."""
    between = list(_between(connection, dsn))
    if any(finding.severity == "error" for finding in between):
        return between
    found = [*between, *_server(connection), *room(connection)]
    if wrong := drift.version(connection):
        return [*found, *wrong]
    return [
        *found,
        *drift.drift(connection, by_hand=True),
        *_agent(connection, max_skew or limits.MAX_CLOCK_SKEW),
        *_peers(connection),
        *_open_transactions(connection),
        *_foreign_keys(connection),
        *orphans(connection),
        *_other_triggers(connection),
        *bypass(connection),
        *grants(connection),
        *_numbers(connection),
        *typed.findings(connection),
        *versions.findings(connection),
    ]


def identity(connection: Connection, site: UUID, incarnation: UUID, sha256: str | None) -> Iterator[Finding]:
    """Whether the database is the one of the home, and the cluster knows the home's certificate."""
    if drift.version(connection):
        return
    row = connection.execute("select name, site, incarnation from syncagent.local_site").fetchone()
    if row is None or (row["site"], row["incarnation"]) != (site, incarnation):
        who = f"is site {row['name']}" if row else "is no site"
        yield Finding(
            "error",
            f"the database of this home's dsn {who}: not the home's own",
            "correct the dsn, or use the right home",
        )
        return
    listed = connection.execute(
        "select m.sha256 from syncagent.member m join syncagent.local_site s on s.node = m.node"
    ).fetchone()
    if sha256 is not None and listed and sha256 not in listed["sha256"]:
        yield Finding(
            "error",
            f"the cluster lists another certificate of this site than the home holds ({', '.join(listed['sha256']) or 'none'}):"
            " every peer refuses it",
            "restore key.pem and certificate.pem of this home; if they are lost, `syncagent remove` this site at another one",
        )


def _between(connection: Connection, dsn: str) -> Iterator[Finding]:
    match pooler.between(connection, dsn):
        case "shares sessions":
            yield Finding(
                "error",
                "a pooler between this host and the server gives sessions to others after each transaction:"
                " the agent cannot work there, and nothing else was looked at",
                POOLER_HINT,
            )
        case "keeps sessions":
            yield Finding(
                "note",
                "a pooler or proxy answers in the server's place: it must keep each session to one client",
                POOLER_HINT,
            )
        case "nothing":
            pass


def _server(connection: Connection) -> Iterator[Finding]:
    if not may_apply(connection):
        yield Finding(
            "error",
            "the role may not set session_replication_role: nothing can be applied",
            apply_grant(connection),
        )
    settings = {
        row["name"]: row["setting"]
        for row in connection.execute(
            "select name, setting from pg_settings where name = any (%s)", (list(_SETTINGS),)
        )
    }
    for name, (bad, severity, why) in _SETTINGS.items():
        if settings.get(name) == bad:
            yield Finding(severity, f"{name} is {bad}: {why}", f"alter system set {name} = on")
    row = connection.execute(
        "select pg_is_in_recovery() as standby, getdatabaseencoding() as encoding,"
        " (select setting::int from pg_settings where name = 'deadlock_timeout') as deadlock_ms"
    ).fetchone()
    assert row is not None
    if row["standby"]:
        yield Finding(
            "error",
            "this server is a standby: nothing can be written",
            "use the primary's address in the dsn",
        )
    if row["encoding"] != "UTF8":
        yield Finding(
            "warning",
            f"the database is in {row['encoding']}: other sites' text may not fit",
            "use a UTF8 database",
        )
    if row["deadlock_ms"] < limits.LOCK_TIMEOUT * 10_000:
        yield Finding(
            "warning",
            f"deadlock_timeout is {row['deadlock_ms']} ms: the application may become a deadlock's victim",
            "alter system set deadlock_timeout = '1s'",
        )


_SETTINGS: dict[str, tuple[str, drift.Severity, str]] = {
    "fsync": ("off", "warning", "a crash of the machine loses what other sites believe is here"),
    "full_page_writes": ("off", "warning", "a crash of the machine can damage pages"),
    "autovacuum": ("off", "warning", "dead versions pile up"),
    "synchronous_commit": (
        "off",
        "note",
        "a crash loses the application's last commits, unless they were cut",
    ),
}


def _agent(connection: Connection, max_skew: float) -> Iterator[Finding]:
    runs = agent_runs(connection)
    if not runs:
        yield Finding("error", "no agent is running: nothing is replicated", "syncagent run")
    elif (state := connection.execute("select version from syncagent.agent_state").fetchone()) and (
        state["version"] != __version__
    ):
        yield Finding(
            "warning",
            f"the agent that runs is version {state['version']}, and this command is {__version__}",
            "stop the agent, and start it again: syncagent run",
        )
    sites = connection.execute("select * from syncagent.status order by not is_self, node").fetchall()
    offsets = [site["clock_offset_seconds"] for site in sites if site["clock_offset_seconds"] is not None]
    if runs and (error := clocks.own_error(offsets)):
        yield Finding(
            "error" if abs(error) > max_skew else "warning",
            f"this site's clock is {error:+.1f} s from those of all its peers",
            "let this host keep time with NTP or chrony",
        )
    for site in sites:
        name = site["name"]
        if site["is_self"] and (site["log_bytes"] or 0) > _LOG_BYTES:
            yield Finding(
                "warning",
                f"the log of captured writes holds {site['log_bytes'] // 2**20} MB",
                "syncagent run" if not runs else "end the oldest transactions, see below",
            )
        if site["parked"] and site["is_self"]:
            yield Finding("warning", f"{site['parked']} rows are parked", "syncagent parked list")
        if not runs:
            continue
        if site["state"] in ("away", "paused"):
            mend = (
                f"syncagent resume {name}"
                if site["paused"]
                else "see its agent, the network, and config.toml of both"
            )
            yield Finding("warning", f"peer {name} is {site['state']}", mend)
        for text in filter(None, (None if site["paused"] else site["waiting"], site["trouble"])):
            yield Finding("warning", f"{name}: {text}")
        offset = abs(site["clock_offset_seconds"] or 0)
        if offset > limits.CLOCK_OFFSET:
            yield Finding(
                "error" if offset > max_skew else "warning",
                f"the clock of {name} is {site['clock_offset_seconds']:+.1f} s from ours",
                "let both hosts keep time with NTP or chrony",
            )
    lead = connection.execute(
        "select (s.last_value - syncagent._wall()) / 4096000.0 as seconds from syncagent.hlc s where s.is_called"
    ).fetchone()
    if lead and lead["seconds"] > limits.CLOCK_OFFSET:
        yield Finding(
            "warning",
            f"this site's stamps run {lead['seconds']:.1f} s ahead of its clock: a clock was, or is, wrong",
        )


def _peers(connection: Connection) -> Iterator[Finding]:
    """What the others have of us, and what was found when they were compared with us."""
    for row in connection.execute(
        "select name, behind_rows, behind_seconds from syncagent.status"
        " where not is_self and behind_seconds > %s order by node",
        (_BEHIND_SECONDS,),
    ).fetchall():
        yield Finding(
            "warning",
            f"{row['name']} lacks {row['behind_rows'] or 0:,} rows of this site, and has for {row['behind_seconds'] / 60:.0f} min",
            f"syncagent doctor, at {row['name']}",
        )
    for row in connection.execute(
        "select distinct on (site) site, at, equal, tables, times from syncagent.proof order by site, at desc"
    ).fetchall():
        if not row["equal"]:
            yield Finding(
                "warning",
                f"{row['site']} and this site were not equal when they were compared last, {row['at']:%Y-%m-%d %H:%M:%S %Z}",
                "syncagent verify, and then syncagent repair --dry-run",
            )


def _open_transactions(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(
        "select quote_literal(gid) as gid, owner, extract(epoch from now() - prepared)::bigint as seconds from pg_prepared_xacts"
        " where database = current_database() order by prepared"
    ):
        yield Finding(
            "error" if row["seconds"] > _OPEN_SECONDS else "warning",
            f"transaction {row['gid']} of {row['owner']} has been prepared for {row['seconds']} s; what it wrote and locks waits",
            f"commit prepared {row['gid']}, or rollback prepared {row['gid']}",
        )
    for row in connection.execute(
        "select pid, coalesce(nullif(application_name, ''), usename) as who, state,"
        " extract(epoch from clock_timestamp() - xact_start)::bigint as seconds from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid() and backend_xid is not null"
        " and xact_start < clock_timestamp() - make_interval(secs => %s) order by xact_start",
        (_OPEN_SECONDS,),
    ):
        yield Finding(
            "warning",
            f"pid {row['pid']} ({row['who']}, {row['state']}) has been in a transaction for {row['seconds']} s",
            f"select pg_terminate_backend({row['pid']})",
        )


def _foreign_keys(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(
        """
        select c.conname as name, c.conrelid::regclass::text as referring, c.confrelid::regclass::text as referred, r.id is not null as from_ours
        from pg_constraint c
        left join syncagent.replicated r on r.relation = c.conrelid left join syncagent.replicated d on d.relation = c.confrelid
        where c.contype = 'f' and c.conparentid = 0 and (r.id is null) <> (d.id is null) order by 2, 1
        """
    ).fetchall():
        inside, outside = (
            (row["referring"], row["referred"]) if row["from_ours"] else (row["referred"], row["referring"])
        )
        why = (
            "rows of the first may arrive at sites that lack those of the second"
            if row["from_ours"]
            else f"deletes that arrive in {inside} leave rows of {outside} behind"
        )
        yield Finding(
            "warning",
            f"{row['referring']} refers to {row['referred']} ({row['name']}), and only {inside} is attached: {why}",
            f"syncagent attach {outside}",
        )


def _other_triggers(connection: Connection) -> Iterator[Finding]:
    for row in connection.execute(
        "select quote_ident(t.tgname) as name, t.tgrelid::regclass::text as relation, t.tgenabled::text as state from pg_trigger t"
        " join syncagent.replicated r on r.relation in (t.tgrelid, pg_partition_root(t.tgrelid))"
        " where not t.tgisinternal and t.tgparentid = 0 and t.tgenabled in ('A', 'R') and t.tgname !~ '^syncagent_' order by 2, 1"
    ):
        yield Finding(
            "warning",
            f"trigger {row['name']} of {row['relation']} fires again where the agent applies rows",
            f"alter table {row['relation']} enable trigger {row['name']}",
        )
    for row in connection.execute(
        "select quote_ident(w.rulename) as name, w.ev_class::regclass::text as relation from pg_rewrite w"
        " join syncagent.replicated r on r.relation = w.ev_class where w.ev_enabled in ('A', 'R') order by 2, 1"
    ):
        yield Finding(
            "warning",
            f"rule {row['name']} of {row['relation']} acts again where the agent applies rows",
            f"alter table {row['relation']} enable rule {row['name']}",
        )


def _numbers(connection: Connection) -> Iterator[Finding]:
    """Numbers that every site draws for itself: two rows of one key meet as one, others collide."""
    for row in connection.execute(
        """
        select r.relation::regclass::text as relation, quote_ident(n.column_name) as name, r.derived, n.is_unique, q.seqincrement as step,
               n.sequence::text as sequence, s.every, n.column_name = any (r.key_columns) and cardinality(r.key_columns) = 1 as is_key
        from syncagent.replicated r join pg_class c on c.oid = r.relation
        cross join lateral syncagent._numbered(r.relation) as n join pg_sequence q on q.seqrelid = n.sequence
        left join syncagent.stride s on s.relation = r.id and s.column_name = n.column_name
        where n.counts and q.seqincrement is distinct from s.every
        order by 1, 2
        """
    ):
        if row["every"] is not None:
            yield Finding(
                "error",
                f"{row['sequence']} counts in steps of {row['step']}, and was set to {row['every']} by --stride",
                f"alter sequence {row['sequence']} increment by {row['every']}",
            )
            continue
        derive = "--derive-key " if row["derived"] else ""
        what = "make one row of two" if row["is_key"] else "number two rows alike"
        yield Finding(
            "warning" if row["is_unique"] else "note",
            f"{row['relation']}.{row['name']} is numbered here: two sites that draw one number {what}",
            f"syncagent detach {row['relation']} && syncagent attach --existing keep {derive}--stride N {row['relation']}",
        )

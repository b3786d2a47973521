"""`syncagent init`: what it makes, and that a refused one has made nothing."""

import stat
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from syncagent import settings
from syncagent.embedded import Server
from syncagent.storage import session
from syncagent.transport.tls import Credentials
from tests.cli.conftest import Cli, Said, Site, init, on_each_version
from tests.support.databases import Database

WORD = "s3kr3t-word"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "home"


def nothing_was_made(database: Database, home: Path) -> bool:
    return not home.parent.exists() and database.execute("select to_regnamespace('syncagent')") == [(None,)]


def refused(said: Said, what: str, hint: str, code: int = 1) -> None:
    assert said.code == code, said.err
    assert what in said.err
    assert "hint: " in said.err
    assert hint in said.err
    assert not said.out
    assert WORD not in said.err


@on_each_version
def test_a_database_becomes_a_site(cli: Cli, database: Database, home: Path) -> None:
    answer = init(cli, database, home, "--node", 7, "--advertise", "paris.example:7400", "--json").answer
    made = settings.load(home)
    assert answer == {
        "node": 7,
        "name": "paris",
        "site": str(made.site),
        "listen": "127.0.0.1:7400",
        "advertise": "paris.example:7400",
        "sha256": Credentials.provide(home, "paris").sha256,
        "home": str(home),
    }
    assert (made.name, made.node, made.dsn, made.addresses) == ("paris", 7, database.dsn, {})
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {
        "config.toml": 0o600,
        "key.pem": 0o600,
        "certificate.pem": 0o644,
    }
    assert database.execute("select name, node, site, incarnation from syncagent.local_site") == [
        ("paris", 7, made.site, made.incarnation)
    ]
    assert database.execute("select node, name, address, sha256, state, votes from syncagent.member") == [
        (7, "paris", "paris.example:7400", [answer["sha256"]], "member", True)
    ]
    assert database.execute("select syncagent.stamp_node(syncagent.uuid7())") == [(7,)]


def test_a_person_is_told_how_to_go_on(cli: Cli, database: Database, home: Path) -> None:
    said = init(cli, database, home)
    assert said.code == 0
    for verb in ("attach", "run", "invite", "join"):
        assert f"syncagent {verb}" in said.out


def test_a_site_that_only_dials_out(cli: Cli, database: Database, home: Path) -> None:
    answer = init(cli, database, home, "--listen", "none", "--json").answer
    assert (answer["listen"], answer["advertise"]) == ("none", None)


def test_an_address_that_nobody_can_dial_is_pointed_out(cli: Cli, database: Database, home: Path) -> None:
    assert "use --advertise" in init(cli, database, home, "--listen", "0.0.0.0:7400").err


def test_flags_have_twins_in_the_environment(
    cli: Cli, database: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "DSN": database.dsn,
        "HOME": str(home),
        "JSON": "1",
        "INIT_NAME": "oslo",
        "INIT_LISTEN": "none",
        "INIT_NODE": "9",
    }.items():
        monkeypatch.setenv(f"SYNCAGENT_{name}", value)
    answer = cli("init").answer
    assert (answer["name"], answer["node"], answer["listen"], answer["home"]) == (
        "oslo",
        9,
        "none",
        str(home),
    )


def test_a_dsn_in_the_form_of_libpq_is_kept(cli: Cli, database: Database, home: Path) -> None:
    parts = psycopg.conninfo.conninfo_to_dict(database.dsn)
    spelled = " ".join(f"{name}='{value}'" for name, value in parts.items())
    assert init(cli, database, home, "--dsn", spelled).code == 0
    assert settings.load(home).dsn == spelled  # both drivers take it: tests/storage/test_dsns.py


def test_the_sql_side_may_be_there_already(cli: Cli, database: Database, home: Path) -> None:
    assert cli("db", "install", "--dsn", database.dsn).code == 0
    said = cli("tables", "--dsn", database.dsn)
    assert said.code == 1
    assert "no site yet" in said.err
    assert init(cli, database, home).code == 0


# ---- bad input


def test_a_home_that_is_taken(cli: Cli, site: Site, make_database: Callable[..., Database]) -> None:
    before = {path: path.read_bytes() for path in site.home.iterdir()}
    other = make_database(site.database.server)
    refused(init(cli, other, site.home), "is the home of a site already", "--home")
    assert {path: path.read_bytes() for path in site.home.iterdir()} == before
    assert other.execute("select to_regnamespace('syncagent')") == [(None,)]


def test_a_database_that_is_taken(cli: Cli, site: Site, home: Path) -> None:
    before = site.sql("select * from syncagent.local_site")
    refused(init(cli, site.database, home), "this database is the site paris already", "uninstall")
    assert not home.parent.exists()
    assert site.sql("select * from syncagent.local_site") == before


def test_a_home_that_cannot_be_made(cli: Cli, database: Database, tmp_path: Path) -> None:
    (tmp_path / "deep").touch()
    said = init(cli, database, tmp_path / "deep" / "home")
    refused(said, "cannot be written", "choose another one with --home")
    refused(init(cli, database, tmp_path / "deep"), "is a file", "name a folder")
    assert database.execute("select to_regnamespace('syncagent')") == [(None,)]


def test_what_was_in_the_folder_stays(
    cli: Cli, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").touch()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(settings, "write", fail)
    refused(init(cli, database, tmp_path), "No space left on device", "choose another one")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert database.execute("select to_regnamespace('syncagent')") == [(None,)]


@pytest.mark.parametrize(
    ("dsn", "what", "hint", "code"),
    [
        (
            f"postgresql://me:{WORD}@127.0.0.1:1/x",
            "no PostgreSQL can be reached at 127.0.0.1:1, database x, user me",
            "server running",
            1,
        ),
        (
            f"postgresql://me:{WORD}@nowhere.invalid/x",
            "no PostgreSQL can be reached at nowhere.invalid:5432",
            "correct the host",
            1,
        ),
        (f"pass={WORD}", "the dsn cannot be read", "postgresql://user", 2),
        (f"postgresql//{WORD}", "the dsn cannot be read", "postgresql://user", 2),
        (f"postgresql://me:{WORD}@host/x?nonsense=1", "the dsn cannot be read", "postgresql://user", 2),
    ],
)
def test_a_dsn_to_nowhere(cli: Cli, home: Path, dsn: str, what: str, hint: str, code: int) -> None:
    said = cli("init", "--dsn", dsn, "--name", "paris", "--listen", "none", "--home", home)
    refused(said, what, hint, code)
    assert not home.parent.exists()


def test_a_wrong_password(cli: Cli, database: Database, home: Path) -> None:
    dsn = database.server.dsn(database.name, password=WORD)
    refused(
        init(cli, database, home, "--dsn", dsn), "password authentication failed", "check user and password"
    )
    assert nothing_was_made(database, home)


def test_a_database_that_does_not_exist(cli: Cli, database: Database, home: Path) -> None:
    dsn = database.server.dsn("nonesuch")
    refused(init(cli, database, home, "--dsn", dsn), 'database "nonesuch" does not exist', "create it first")


@pytest.mark.parametrize(
    ("option", "value", "what"),
    [
        ("--name", "pa ris", "cannot be a site's name"),
        ("--name", "p" * 64, "cannot be a site's name"),
        ("--node", 0, "is not a node number"),
        ("--node", 65536, "is not a node number"),
        ("--listen", "7400", "is not HOST:PORT"),
        ("--advertise", "0.0.0.0", "is not HOST:PORT"),
    ],
)
def test_what_makes_no_site(
    cli: Cli, database: Database, home: Path, option: str, value: object, what: str
) -> None:
    refused(init(cli, database, home, option, value), what, "", code=2)
    assert nothing_was_made(database, home)


@on_each_version
def test_a_server_that_is_too_old(
    cli: Cli, database: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "OLDEST", 990000)
    major = database.server.binaries.major
    refused(
        init(cli, database, home),
        f"this server is PostgreSQL {major}; syncagent needs 99",
        "upgrade the server",
    )
    assert nothing_was_made(database, home)


@pytest.fixture
def role(database: Database) -> str:
    """A role of its own for each database, for roles outlive them."""
    name = f"agent_{database.name}"
    database.server.create_role(name)
    return name


@on_each_version
def test_a_role_that_may_not_make_a_schema(cli: Cli, database: Database, home: Path, role: str) -> None:
    said = init(cli, database, home, "--dsn", database.dsn_of(role))
    refused(
        said,
        f"role {role} may not create a schema",
        f"grant create on database {database.name} to {role}",
    )
    assert nothing_was_made(database, home)


@on_each_version
def test_a_role_that_may_not_apply(cli: Cli, database: Database, home: Path, role: str) -> None:
    database.execute(f"grant create on database {database.name} to {role}")
    said = init(cli, database, home, "--dsn", database.dsn_of(role))
    hint = (
        f"alter role {role} superuser"
        if database.server.binaries.major < 15
        else f"grant set on parameter session_replication_role to {role}"
    )
    refused(said, f"role {role} may not set session_replication_role", hint)
    assert nothing_was_made(database, home)


@on_each_version
def test_a_role_with_two_grants_is_enough(
    cli: Cli, server: Server, database: Database, home: Path, role: str
) -> None:
    if server.binaries.major < 15:
        database.execute(f"alter role {role} superuser")
    else:
        database.execute(f"grant set on parameter session_replication_role to {role}")
    database.execute(f"grant create on database {database.name} to {role}")
    assert init(cli, database, home, "--dsn", database.dsn_of(role)).code == 0
    if server.binaries.major >= 15:
        database.execute(f"revoke set on parameter session_replication_role from {role}")
    server.execute(sql.SQL("alter role {} nosuperuser").format(sql.Identifier(role)))

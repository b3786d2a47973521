"""The servers that every other test trusts."""

import os
import shutil
import signal
import socket
import stat
from pathlib import Path

import psycopg
import pytest

from syncagent.embedded import Binaries, Server, account, all_binaries, find_binaries, free_port, scratch
from syncagent.embedded import binaries as finding
from syncagent.errors import DatabaseError, UsageError
from tests.support import postgres
from tests.support.databases import Database
from tests.support.postgres import Servers, binaries


def test_version_is_the_one_asked_for(server: Server) -> None:
    with psycopg.connect(server.dsn()) as connection:
        assert connection.info.server_version // 10000 == server.binaries.major


def test_databases_are_utf8_and_sort_by_code_point(database: Database) -> None:
    query = "select array(select x from unnest('{b,a,B,ä}'::text[]) x order by 1), upper('ä')"
    assert database.execute(query) == [(["B", "a", "b", "ä"], "Ä")]


def test_every_server_has_its_own_identity(servers: Servers) -> None:
    with scratch() as folder:
        seen = set()
        for name in "ab":
            with Server(binaries(18), folder / name) as server, psycopg.connect(server.dsn()) as connection:
                seen |= set(connection.execute("select system_identifier from pg_control_system()"))
    assert len(seen) == 2


def test_only_its_password_and_its_own_socket_open_it(server: Server) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.dsn(password="guess"))
    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    psycopg.connect(host=str(server.socket_dir), port=server.port, user="postgres").close()


def test_role_may_log_in_and_nothing_more(database: Database) -> None:
    database.server.create_role("visitor")
    try:
        with (
            database.connect(role="visitor") as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute("create role other")
    finally:
        database.execute("drop role visitor")


@pytest.mark.parametrize("major", [15, 18])
def test_kill_leaves_no_process_and_loses_no_commit(major: int) -> None:
    with scratch() as folder, Server(binaries(major), folder / "data") as server:
        connection = psycopg.connect(server.dsn(), autocommit=True)
        connection.execute("create table t as select 1 as x")
        backend = connection.info.backend_pid
        postmaster = server.pid
        server.kill()
        for pid in (backend, postmaster):
            assert pid is not None
            assert not _alive(pid)
        connection.close()
        server.start()
        with psycopg.connect(server.dsn()) as again:
            assert again.execute("select x from t").fetchall() == [(1,)]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_start_stop_and_kill_may_be_repeated() -> None:
    with scratch() as folder:
        server = Server(binaries(18), folder / "data")
        server.stop()
        server.kill()
        server.start()
        port, pid = server.port, server.pid
        server.start()
        assert server.pid == pid
        server.stop()
        server.stop()
        assert not server.running
        server.restart()
        assert server.port == port
        server.kill()
        server.kill()
        assert server.pid is None


def test_server_that_died_is_started_again() -> None:
    with scratch() as folder, Server(binaries(18), folder / "data") as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGINT)
        server.stop()
        server.start()
        psycopg.connect(server.dsn()).close()


def test_settings_are_read_at_every_start() -> None:
    with scratch() as folder, Server(binaries(18), folder / "data", settings={"work_mem": "1MB"}) as server:
        server.settings |= {"work_mem": "2MB", "application_name": "it's", "enable_seqscan": False}
        server.restart()
        with psycopg.connect(server.dsn()) as connection:
            shown = [
                connection.execute(f"show {name}").fetchone()
                for name in ("work_mem", "enable_seqscan", "fsync")
            ]
    assert shown == [("2MB",), ("off",), ("off",)]


def test_durable_server_keeps_fsync() -> None:
    with scratch() as folder, Server(binaries(18), folder / "data", durable=True) as server:
        connection = psycopg.connect(server.dsn())
        assert connection.execute("show fsync").fetchone() == ("on",)
        connection.close()


def test_long_path_gets_a_short_socket() -> None:
    with scratch() as folder, Server(binaries(18), folder / ("long" * 30)) as server:
        sockets = server.socket_dir
        psycopg.connect(host=str(sockets), port=server.port, user="postgres").close()
    assert not sockets.exists()


def test_refused_setting_is_quoted_from_the_log() -> None:
    with scratch() as folder, pytest.raises(DatabaseError) as caught:
        Server(binaries(18), folder / "data", settings={"nonsense": 1}).start()
    assert 'unrecognized configuration parameter "nonsense"' in str(caught.value.detail)


def test_port_is_given_once_and_can_be_listened_on() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    for port in ports:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))  # as `free_port` of another process looks for one
        with socket.create_server(("127.0.0.1", port)) as listener:
            assert listener.getsockname()[1] == port


def test_port_that_was_given_and_is_taken_is_an_error(server18: Server) -> None:
    with scratch() as folder, pytest.raises(DatabaseError) as caught:
        Server(binaries(18), folder / "data", port=server18.port).start()
    assert "could not bind" in str(caught.value.detail)


def test_port_that_was_chosen_and_is_taken_moves(server18: Server) -> None:
    with scratch() as folder:
        server = Server(binaries(18), folder / "data")
        server.port = server18.port
        with server:
            assert server.port != server18.port


def test_free_ports_leave_outgoing_connections_alone() -> None:
    assert 20000 <= free_port() < 32768


def test_binaries_are_searched_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PG_BIN", raising=False)
    assert find_binaries().major == 18
    fifteen = binaries(15)
    monkeypatch.setenv("PG_BIN", str(fifteen.folder))
    assert all_binaries()[0] == fifteen
    assert find_binaries().major == 15
    monkeypatch.setenv("PG_BIN", str(tmp_path))
    with pytest.raises(UsageError, match="no working PostgreSQL"):
        find_binaries()


def test_missing_version_is_an_error_with_a_hint() -> None:
    with pytest.raises(UsageError, match="no PostgreSQL 7 found") as caught:
        find_binaries(7)
    assert "syncagent[demo]" in str(caught.value.hint)


def test_version_that_cannot_be_fetched_for_the_tests_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    with pytest.raises(UsageError, match="PostgreSQL 14 is not here, and could not be fetched") as caught:
        postgres._fetch(14, tmp_path / "postgresql" / "14")
    assert caught.value.hint is not None
    assert "install postgresql-14, or set PG_BIN" in caught.value.hint
    assert not (tmp_path / "postgresql" / "14").exists()


def test_tools_are_found_or_said_to_be_missing() -> None:
    for name in ("psql", "pg_dump", "pgbench"):
        assert os.access(binaries(18).tool(name), os.X_OK)
    without = Binaries(Path("/nonexistent"), "15.0")
    assert without.tool("pg_dump").exists()
    with pytest.raises(UsageError) as caught:
        Binaries(Path("/nonexistent"), "99.1").tool("pg_dump")
    assert "postgresql-client-99" in str(caught.value.hint)


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers run as an account that owns nothing here, as they do for root."""
    monkeypatch.setattr(account, "account", lambda: account.Account("stranger", 54321, 54321))


@pytest.mark.usefixtures("stranger")
def test_folder_is_reachable_if_every_folder_above_lets_the_account_in() -> None:
    with scratch() as folder:
        inner = folder / "closed" / "open"
        inner.mkdir(parents=True)
        inner.chmod(0o755)
        inner.parent.chmod(0o711)
        assert account.reachable(inner)
        inner.parent.chmod(0o700)
        assert not account.reachable(inner)


@pytest.mark.usefixtures("stranger")
def test_hidden_binaries_are_copied_once_to_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch() as folder:
        monkeypatch.setattr(finding, "_CACHE", folder / "cache")
        original = folder / "hidden" / "package" / "pginstall"
        shutil.copytree(binaries(18).folder, original / "bin")
        (folder / "hidden" / "package.libs").mkdir()
        (folder / "hidden").chmod(0o700)
        hidden = Binaries(original / "bin", binaries(18).version)
        copy = finding.within_reach(hidden)
        assert account.reachable(copy.folder / "postgres")
        assert (copy.folder / "../../../package.libs").is_dir()
        assert finding.within_reach(hidden) == copy
        assert [path.name for path in (folder / "cache").iterdir()] == [copy.folder.parents[2].name]

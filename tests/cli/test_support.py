"""`syncagent support-bundle`: all that helps is in it, and nothing that is secret, wherever it was planted."""

import gzip
import json
import os
import socket
import tarfile
from pathlib import Path
from urllib.parse import quote

import pytest

from syncagent.cli.manager import Manager
from syncagent.settings import FILE
from tests.cli.conftest import Cli, Site

PASSWORD = "p:ss w/rd@'\"x\\9"
TOKEN = "sa1-AaIbLA_udeOAACXjUu0NJsGRnLuvNx7JvopFwlLnG2aGrADZ9KVawW7p_vmpBw8_"
ROW = "a row of the application"
PARTS = {
    *(
        "doctor.json",
        "status.json",
        "versions.json",
        "settings.toml",
        "home.json",
        "catalog.json",
        "tables.json",
    ),
    *(
        "sizes.json",
        "plans.json",
        "server_settings.json",
        "sessions.json",
        "conflicts.json",
        "parked.json",
        "log.txt",
    ),
}


def unpacked(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
        return found


@pytest.fixture
def secretive(site: Site) -> Site:
    """A site whose secrets lie everywhere."""
    key = (site.home / "key.pem").read_text()
    path = site.home / FILE
    text = path.read_text()
    dsn = f"{site.database.dsn}?sslpassword={quote(PASSWORD, safe='')}"
    path.write_text(text.replace(json.dumps(site.database.dsn), json.dumps(dsn)) + f"# once: {PASSWORD}\n")
    site.sql("create table t (id uuid primary key default gen_random_uuid(), v text)")
    site.sql(f"insert into t (v) values ('{ROW}')")
    assert site("attach", "t").code == 0
    site.sql(
        "insert into syncagent.conflict_record (id, schema_name, table_name, key, key_text, kind, strategy, winning_node, losing_node, winning_stamp, losing_stamp,"
        " winning_image, losing_image) select gen_random_uuid(), 'public', 't', id, id::text, 'update/update', 'lww', 1, 1, id, id,"
        " to_jsonb(t.*), to_jsonb(t.*) from t"
    )
    (site.home / "agent.log").write_text(
        f"cannot connect with {dsn}\npassword: '{PASSWORD}'\njoin --token {TOKEN}\n{key}\nagain: {key.splitlines()[1]}\n"
        "postgresql://other:hunter2@elsewhere/x\nalter role r password 'hunter3'\nPGPASSWORD=hunter4\nall is well\n"
        f"DETAIL:  Key (name, city)=({ROW}, (Rome)) already exists.\nDETAIL:  Failing row contains (1, {ROW}).\n"
    )
    return site


def test_a_bundle_holds_what_helps_and_no_secret(secretive: Site, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    password = secretive.database.server.password
    said = secretive("support-bundle", "--output", bundle, "--log", secretive.home / "agent.log", "--json")
    answer = said.answer
    assert answer["file"] == str(bundle)
    assert answer["hidden"] >= 8
    assert bundle.stat().st_mode & 0o077 == 0
    found = unpacked(bundle)
    assert set(found) >= PARTS
    assert not [name for name, text in found.items() if text.startswith("not to be had")]
    whole = gzip.decompress(bundle.read_bytes()).decode(errors="replace")
    key = (secretive.home / "key.pem").read_text().splitlines()
    secrets = [PASSWORD, quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1], password, TOKEN, *key[1:-1]]
    for secret in [*secrets, "PRIVATE KEY", "hunter2", "hunter3", "hunter4", ROW]:
        assert secret not in whole
    assert "all is well" in found["log.txt"]
    assert json.loads(found["status.json"])[0]["name"] == "paris"
    assert json.loads(found["conflicts.json"])[0]["count"] == 1
    assert "no agent is running" in found["doctor.json"]
    assert "public.t" in json.loads(found["plans.json"])
    assert 'name = "paris"' in found["settings.toml"]


def test_without_a_database_it_holds_the_rest(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = site("support-bundle", "--dsn", "postgresql://me:hunter2@127.0.0.1:1/x")
    assert said.code == 0
    (bundle,) = tmp_path.glob("syncagent-paris-*.tar.gz")
    assert said.out.strip() == bundle.name
    found = unpacked(bundle)
    assert "no PostgreSQL can be reached" in found["database.txt"]
    assert {"versions.json", "settings.toml"} <= set(found)
    assert "hunter2" not in "".join(found.values())
    assert site("support-bundle", "--output", bundle).code == 1


def test_without_a_home(site: Site, cli: Cli, tmp_path: Path) -> None:
    bundle = tmp_path / "b.tar.gz"
    assert cli("support-bundle", "--dsn", site.database.dsn, "--output", bundle).code == 0
    assert json.loads(unpacked(bundle)["status.json"])[0]["name"] == "paris"
    assert cli("support-bundle", "--output", tmp_path / "c.tar.gz").code == 2


# ---- what a service manager is told


async def test_a_service_manager_hears_of_start_life_and_end(tmp_path: Path) -> None:
    import asyncio

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        manager = Manager(
            {
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "30000",
                "WATCHDOG_PID": str(os.getpid()),
            }
        )
        manager.ready()
        life = asyncio.create_task(manager.live())
        heard = [(await asyncio.to_thread(systemd.recv, 100)).decode() for _ in range(3)]
        life.cancel()
        manager.say("STOPPING=1")
    assert heard == ["READY=1\nSTATUS=running", "WATCHDOG=1", "WATCHDOG=1"]
    manager.say("nobody hears it any more")  # and that is no reason to end


async def test_without_a_service_manager_nothing_is_said(tmp_path: Path) -> None:
    manager = Manager({"WATCHDOG_USEC": "30000"})
    manager.ready()
    await manager.live()  # returns at once
    other = Manager({"NOTIFY_SOCKET": str(tmp_path / "x"), "WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"})
    await other.live()  # it is another process that is watched

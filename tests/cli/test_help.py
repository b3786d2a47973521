"""What everybody meets first: help, the version, twins in the environment, and quick answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from syncagent import __version__
from syncagent.cli.app import PANELS, app
from tests.cli.conftest import Cli, Site

HEAVY = {
    "aiohttp",
    "alembic",
    "asyncio",
    "asyncpg",
    "cryptography",
    "msgspec",
    "prometheus_client",
    "psycopg",
    "sqlalchemy",
    "structlog",
}


def commands() -> list[tuple[str, ...]]:
    root = typer.main.get_command(app)
    found: list[tuple[str, ...]] = []
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", None)
        found += [(name, verb) for verb in below] if below else [(name,)]
    return found


def test_help_is_quick_because_it_imports_little() -> None:
    code = "import sys; from syncagent.cli.app import app; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    agent = Path(__file__).parents[2] / "agent"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(agent)},
    )
    assert not HEAVY & set(done.stdout.split())


def test_help_takes_less_than_four_tenths_of_a_second() -> None:
    """Of a processor: what else runs here is no matter; one of ten times."""

    def spent() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "syncagent", "--help"], capture_output=True, check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert any(spent() < 0.4 for _ in range(10))


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"syncagent {__version__}\n"


def test_every_verb_of_the_interface_is_there() -> None:
    verbs = {" ".join(command) for command in commands()}
    assert verbs >= {
        *("init", "run", "attach", "detach", "tables", "status", "wait", "why", "pause", "resume", "doctor"),
        *("conflicts list", "conflicts show", "conflicts resolve", "conflicts undo"),
        *("constraints", "parked list", "parked show", "parked retry", "parked drop", "clock accept"),
        *("invite", "join", "leave", "remove", "certificate renew"),
        *("db install", "db upgrade", "db check", "db sql", "db uninstall"),
    }


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_flag_has_a_twin_that_help_shows(
    cli: Cli, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = cli(*command, "--help")
    assert said.code == 0
    flags = [
        line
        for line in said.out.splitlines()
        if line.startswith("│") and " --" in line[:8] and "--help" not in line
    ]
    twins = said.out.count("[env var: SYNCAGENT_")
    assert twins == len(flags), said.out
    if command not in (("demo",), ("bench",), ("db", "sql")):  # they have no site
        for name in ("HOME", "DSN", "JSON"):
            assert f"[env var: SYNCAGENT_{name}]" in said.out


def test_no_verb_at_all_shows_what_there_is(cli: Cli) -> None:
    said = cli()
    told = said.out + said.err
    shown = [told.index(f"─ {panel} ─") for panel in PANELS]
    assert shown == sorted(shown)
    assert all(f"│ {name} " in told for names in PANELS.values() for name in names)
    assert cli("nonsense").code == 2
    assert cli("status", "--nonsense").code == 2


def test_an_answer_in_json_is_all_of_stdout(site: Site) -> None:
    for verb in ("status", "tables", "conflicts list", "parked list", "db check"):
        said = site(*verb.split(), "--json")
        assert said.code == 0
        json.loads(said.out)


def test_a_home_that_is_none_is_a_matter_of_usage(cli: Cli) -> None:
    said = cli("status")
    assert said.code == 2
    assert "is not the home of a site" in said.err
    assert "--home or SYNCAGENT_HOME" in said.err


def test_who_reads_may_stop_reading(site: Site) -> None:
    agent = Path(__file__).parents[2] / "agent"
    command = f"{sys.executable} -m syncagent status --json --home {site.home} | true"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, env={"PYTHONPATH": str(agent)}
    )
    assert "Traceback" not in done.stderr

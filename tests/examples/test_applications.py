"""Applications that others wrote, whole, at two sites; and the means by which their sites are held equal."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from examples.compare import checksums, differences, unequal
from syncagent.embedded import Server
from tests.support.databases import Database

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-examples" / "bin" / "python"
PROGRAMS = [
    ROOT / "examples/mlflow/training.py",
    *(
        path
        for suffix in ("py", "html")
        for path in (ROOT / "examples/wagtail/newsroom").rglob(f"*.{suffix}")
    ),
]
MakeDatabase = Callable[[Server], Database]


@pytest.mark.soak
@pytest.mark.parametrize("name", ["wagtail", "mlflow"])
def test_a_public_application_is_equal_at_two_sites(name: str, runs: Callable[[int, int], int]) -> None:
    if not PYTHON.exists():
        pytest.skip("its packages are not here: `make examples` installs them")
    if not runs(0, 1):
        pytest.skip("takes minutes: --soak")
    done = subprocess.run(
        [PYTHON, "-m", f"examples.{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        rf"{name}: \d+ tables equal on 2 sites, \d+ rows, .*, [1-9]\d* conflicts, \d+ s", last
    ), last


def test_the_applications_know_nothing_of_syncagent() -> None:
    assert len(PROGRAMS) > 10
    for program in PROGRAMS:
        assert "syncagent" not in program.read_text().lower(), program


TABLE = 'create table "Odd one" (id int primary key, at timestamptz, n float8, b bytea, gone int, twice int generated always as (id * 2) stored)'
ROWS = (
    "insert into \"Odd one\" values (1, '2026-01-01 00:00+00', 0.1, '\\x00', 1), (2, null, 'nan', '', null)"
)
NAME = '"Odd one"'


@pytest.fixture
def pair(server15: Server, server18: Server, make_database: MakeDatabase) -> tuple[Database, Database]:
    """The same rows on two versions, in zones apart, the columns in another order."""
    one, two = make_database(server15), make_database(server18)
    for database, zone in ((one, "Asia/Kathmandu"), (two, "America/Lima")):
        database.execute(f"alter database {database.name} set timezone to '{zone}'")
        database.execute(TABLE)
        database.execute(ROWS)
    two.execute(f"alter table {NAME} add column late int")
    one.execute(f"alter table {NAME} drop column gone; alter table {NAME} add column late int")
    two.execute(f"alter table {NAME} drop column gone")
    return one, two


def test_equal_rows_have_equal_checksums(pair: tuple[Database, Database]) -> None:
    sums = [checksums(database.dsn, [NAME]) for database in pair]
    assert sums[0][NAME].rows == 2
    assert unequal(sums) == []


@pytest.mark.parametrize(
    "change",
    [
        f"update {NAME} set late = 0 where id = 1",
        f"delete from {NAME} where id = 2",
        f"insert into {NAME} (id) values (3)",
        f"update {NAME} set b = '\\x0000' where id = 1",
        f"update {NAME} set n = 0.1::float4 where id = 1",
        f"alter table {NAME} add column more int",
        f"drop table {NAME}; create table {NAME} (id int primary key)",
    ],
)
def test_whatever_differs_shows(pair: tuple[Database, Database], change: str) -> None:
    pair[1].execute(change)
    assert unequal([checksums(database.dsn, [NAME]) for database in pair]) == [NAME]
    if not change.startswith(("alter", "drop")):
        assert differences({str(n): database.dsn for n, database in enumerate(pair)}, NAME)

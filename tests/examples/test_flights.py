"""The example application: alone on one PostgreSQL, where nothing else knows of it, and at three sites."""

import datetime as dt
import random
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.orm import Session, aliased

from examples.flights import database as app
from examples.flights.checksum import checksums, row_hashes
from examples.flights.keys import uuid7
from examples.flights.load import load
from examples.flights.models import TABLES, Airline, Airport, Base, Flight, Plane, Status, Weather
from examples.flights.source import read
from examples.flights.writers import Desk, Numbers, Office
from syncagent.embedded import Server
from tests.support.databases import Database
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
ROWS = 1200
MakeDatabase = Callable[[Server], Database]


def create(database: Database) -> None:
    """The application's roles and empty tables."""
    known = {name for (name,) in database.execute("select rolname from pg_roles")}
    for role in {app.OWNER, app.APP} - known:
        database.server.create_role(role)
    administrator = app.engine(database.dsn, "administrator")
    app.create(administrator)
    administrator.dispose()


@pytest.fixture
def database(matrix_server: Server, make_database: MakeDatabase) -> Database:
    """What the application does is the same on each version."""
    return make_database(matrix_server)


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    """The application's role in a fresh database."""
    create(database)
    engine = app.engine(database.dsn_of(app.APP), "office 1")
    yield engine
    engine.dispose()


# Keys.


def test_keys_are_uuid7_and_rise_in_every_thread() -> None:
    def make(_: int) -> list[uuid.UUID]:
        return [uuid7() for _ in range(5000)]

    before = time.time_ns() // 1_000_000
    with ThreadPoolExecutor(4) as executor:
        made = list(executor.map(make, range(4)))
    after = time.time_ns() // 1_000_000
    for keys in made:
        assert all(one < two for one, two in pairwise(keys))
        assert {(key.version, key.variant) for key in keys} == {(7, uuid.RFC_4122)}
        assert before <= keys[0].int >> 80 <= keys[-1].int >> 80 <= after
    assert len({key for keys in made for key in keys}) == 20_000


def test_keys_rise_when_the_clock_steps_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first, now = uuid7(), time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 3_600_000_000_000)
    assert first < uuid7() < uuid7()


# The data set and its tables.


def test_the_data_set_is_whole_and_every_reference_of_a_flight_but_its_plane_is_known() -> None:
    airlines = {row["carrier"] for row in read("airlines")}
    airports = {row["faa"] for row in read("airports")}
    flights = list(read("flights"))
    assert len(flights) == 336_776
    assert {row["carrier"] for row in flights} <= airlines
    assert {row["origin"] for row in flights} | {row["dest"] for row in flights} <= airports


def test_load_fills_the_five_tables(engine: Engine) -> None:
    seen: list[tuple[str, int]] = []
    loaded = load(engine, ROWS, lambda table, done: seen.append((table, done)))
    assert loaded == {"airlines": 16, "airports": 1462, "planes": 3322, "weather": ROWS, "flights": ROWS}
    assert seen[-1] == ("flights", ROWS)
    assert {name: one.rows for name, one in checksums(engine).items()} == {
        f"flights.{t}": n for t, n in loaded.items()
    }

    destination = aliased(Airport)
    with Session(engine) as session:
        first = session.scalars(
            select(Flight)
            .join(Flight.airline)
            .join(destination, Flight.destination)
            .where(Airline.carrier == "UA", Flight.number == 1545, destination.faa == "IAH")
            .order_by(Flight.scheduled_departure)
            .limit(1)
        ).one()
        assert (first.day, first.tail_number, first.status) == (dt.date(2013, 1, 1), "N14228", Status.landed)
        assert (first.origin.faa, first.plane and first.plane.manufacturer) == ("EWR", "BOEING")
        assert first.scheduled_departure == dt.datetime(
            2013, 1, 1, 10, 15, tzinfo=dt.UTC
        )  # 05:15 in New York
        assert first.departed == dt.datetime(2013, 1, 1, 10, 17, tzinfo=dt.UTC)
        assert first.scheduled_arrival == dt.datetime(2013, 1, 1, 14, 19, tzinfo=dt.UTC)  # 08:19 in Houston
        assert first.arrived == dt.datetime(2013, 1, 1, 14, 30, tzinfo=dt.UTC)
        assert first.changed_by == "office 1"
        unknown = select(func.count()).where(Flight.plane_id.is_(None), Flight.tail_number.is_not(None))
        assert session.scalar(unknown)
        assert session.scalar(select(func.count()).where(Flight.status == Status.cancelled))


def test_constraints_hold(engine: Engine) -> None:
    load(engine, 10)
    with engine.connect() as connection:
        flight = dict(connection.execute(select(Flight.__table__).limit(1)).mappings().one())
        weather = dict(connection.execute(select(Weather.__table__).limit(1)).mappings().one())
        plane = dict(connection.execute(select(Plane.__table__).limit(1)).mappings().one())

    def refused(table: type[Base], row: dict[str, object], constraint: str) -> None:
        with pytest.raises(IntegrityError, match=constraint), engine.begin() as connection:
            connection.execute(insert(table).values({**row, "id": uuid7()}))

    refused(Flight, flight, "flights_natural_key")
    refused(Weather, weather, "weather_airport_id_observed_at_key")
    refused(Plane, plane, "planes_tail_number_key")
    for column in ("airline_id", "origin_id", "destination_id", "plane_id"):
        refused(Flight, {**flight, "number": 0, column: uuid7()}, f"flights_{column}_fkey")
    refused(Flight, {**flight, "number": 0, "status": Status.cancelled}, "flights_cancelled_never_departed")
    refused(Flight, {**flight, "number": 0, "arrived": flight["departed"]}, "flights_arrives_after_departure")


def test_the_role_has_no_rights_beyond_its_tables(engine: Engine, database: Database) -> None:
    database.execute("create schema elsewhere; create table elsewhere.secret (id int)")
    for statement in (
        "create table public.mine (id int)",
        "create temporary table mine (id int)",
        "create table flights.mine (id int)",
        "create schema mine",
        "alter table flights.planes add column mine int",
        "truncate flights.flights",
        "select * from elsewhere.secret",
    ):
        with (
            pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
            engine.begin() as connection,
        ):
            connection.execute(text(statement))


# Writers.


def test_every_task_of_an_office_writes(engine: Engine) -> None:
    load(engine, ROWS)
    desk = Desk(random.Random(1), Numbers(engine, 1))
    for task in desk.tasks:
        before = checksums(engine)

        def write(task: Callable[[Session], int] = task) -> int:
            with Session(engine) as session, session.begin():
                return task(session)

        assert until(write, f"{task.__name__} finds something to do")
        assert checksums(engine) != before


def test_an_office_does_the_same_for_the_same_seed(engine: Engine) -> None:
    desks = [Desk(random.Random(5), Numbers(engine, 1)) for _ in range(2)]
    one, two = ([desk.choose().__name__ for _ in range(100)] for desk in desks)
    assert one == two


@pytest.mark.soak
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_offices_write_beside_each_other(
    database: Database, isolation: str, runs: Callable[[int, int], int]
) -> None:
    if isolation != "REPEATABLE READ" and not runs(0, 1):
        pytest.skip("one of them is enough: --soak")
    create(database)
    loader = app.engine(database.dsn_of(app.APP), "loader")
    engines = [app.engine(database.dsn_of(app.APP), f"office {i}", isolation) for i in (1, 2)]
    with ExitStack() as stack:
        offices = [stack.enter_context(Office(e, i, seed=i, pace=500)) for i, e in enumerate(engines, 1)]
        load(loader, ROWS)

        def all_wrote() -> bool:
            for office in offices:
                office.check()
            return all(office.done["delay"] > 10 and office.done["rebook"] for office in offices)

        until(all_wrote, "both offices wrote to the flights that were loaded")
    for office in offices:
        office.check()
    numbers = Numbers(loader, 2)
    with Session(loader) as session:
        names = session.scalars(select(Flight.changed_by).distinct()).all()
        assert {"office 1", "office 2", "loader"} <= set(names)
        # An office that opens again goes on with numbers that it did not give out before.
        assert numbers.flight() > (session.scalar(select(func.max(Flight.number))) or 0)
        assert numbers.tail() not in session.scalars(select(Plane.tail_number)).all()
    for engine in (loader, *engines):
        engine.dispose()


def test_an_office_that_meets_an_error_says_so(database: Database, engine: Engine) -> None:
    database.execute(f"revoke insert on flights.planes from {app.APP}")
    with Office(engine, 1, pace=500) as office, pytest.raises(ProgrammingError, match="permission denied"):
        until(office.check, "the office met the error")


# Checksums.


def test_checksums_are_equal_for_equal_contents_on_other_versions(
    server15: Server, server18: Server, make_database: MakeDatabase
) -> None:
    engines = []
    for server, zone in ((server15, "Asia/Kathmandu"), (server18, "America/Lima")):
        database = make_database(server)
        create(database)
        database.execute(f"alter role {app.APP} in database {database.name} set timezone to '{zone}'")
        engines.append(app.engine(database.dsn_of(app.APP), "office 1"))
    one, two = engines
    load(one, ROWS)
    for table in Base.metadata.sorted_tables:
        with one.connect() as source, two.begin() as target:
            rows = source.execute(select(table).order_by(text("random()"))).mappings().all()
            target.execute(insert(table), [dict(row) for row in rows])
    assert checksums(one) == checksums(two)

    with two.begin() as connection:
        latest = select(func.max(Weather.observed_at)).scalar_subquery()
        connection.execute(
            update(Weather).where(Weather.observed_at == latest).values(pressure=Weather.pressure + 1)
        )
    ours, theirs = checksums(one), checksums(two)
    assert [name for name in TABLES if ours[name] != theirs[name]] == ["flights.weather"]
    before, after = row_hashes(one, "flights.weather"), row_hashes(two, "flights.weather")
    assert {key for key in before if before[key] != after[key]}
    for engine in engines:
        engine.dispose()


# Several sites.


@pytest.mark.soak(only="a minute")
def test_three_sites_are_equal_after_loading_and_writing_everywhere() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.flights", "--sites", "3", "--rows", "2000", "--seconds", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"flights: 5 tables equal on 3 sites, 2000 flights loaded, \d+ rows now, \d+ s", last
    ), last

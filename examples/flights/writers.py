"""What an office does all day: delays, cancellations, other planes, new and deleted flights, better weather.

Several offices do this at once, to the same flights. So each takes new flight numbers and tail numbers from a
range of its own, planes and airports are never deleted, and who locks several rows locks them in key order.
Invariant: a transaction that the database refuses for reasons of concurrency is tried again whole; any other
error ends its worker and is raised by `check`. What was done is counted when it is committed, never before.
"""

import datetime as dt
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, cast
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import CursorResult, Delete, Engine, Update, delete, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from .models import Airline, Airport, Flight, Plane, Status, Weather

AGAIN = {"40001": "serialization", "40P01": "deadlock"}
Span = tuple[dt.datetime, dt.datetime]
NEW_YORK = ZoneInfo("America/New_York")
MINUTE = dt.timedelta(minutes=1)


class Office:
    """`with` it, `workers` threads write, each at most `pace` transactions a second."""

    def __init__(
        self, engine: Engine, number: int, seed: int = 0, workers: int = 2, pace: float = 40.0
    ) -> None:
        self.engine = engine
        self.done: Counter[str] = Counter()  # transactions committed, by kind
        self.rows = 0  # rows they wrote
        self.again: Counter[str] = Counter()  # transactions tried again, by reason
        self._pace = pace
        self._stop = threading.Event()
        self._lock = threading.Lock()
        numbers = Numbers(engine, number)
        self._desks = [Desk(random.Random(f"{seed}/{number}/{i}"), numbers) for i in range(workers)]
        self._threads = ThreadPoolExecutor(workers)
        self._working: list[Future[None]] = []

    def __enter__(self) -> Self:
        self._working = [self._threads.submit(self._run, desk) for desk in self._desks]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Every worker finishes the transaction it is in."""
        self._stop.set()
        self._threads.shutdown()

    def check(self) -> None:
        """Raise what ended a worker early."""
        for worker in self._working:
            if worker.done():
                worker.result()

    def _run(self, desk: "Desk") -> None:
        while not self._stop.wait(desk.random.uniform(0, 2 / self._pace)):
            self._work(desk)

    def _work(self, desk: "Desk") -> None:
        task = desk.choose()
        while not self._stop.is_set():
            try:
                with Session(self.engine) as session, session.begin():
                    rows = task(session)
            except (DBAPIError, StaleDataError) as error:
                reason = _try_again(error)
                if reason is None:
                    raise
                with self._lock:
                    self.again[reason] += 1
                continue
            with self._lock:
                self.done[task.__name__ if rows else "nothing to do"] += 1
                self.rows += rows
            return


def _try_again(error: DBAPIError | StaleDataError) -> str | None:
    if isinstance(error, StaleDataError):
        return "row gone"
    return AGAIN.get(getattr(error.orig, "sqlstate", None) or "")


class Numbers:
    """Flight numbers and tail numbers that no other office gives out."""

    def __init__(self, engine: Engine, office: int) -> None:
        self.office = office
        first, prefix = office * 1_000_000, f"N0{office:02}"
        with engine.connect() as connection:
            range_ = Flight.number.between(first, first + 999_999)
            flight = connection.scalar(select(func.max(Flight.number)).where(range_)) or first
            tail = connection.scalar(
                select(func.max(Plane.tail_number)).where(Plane.tail_number.startswith(prefix))
            )
        self._flights = itertools.count(flight + 1)
        self._tails = itertools.count(int(tail[4:]) + 1 if tail else 1)

    def flight(self) -> int:
        return next(self._flights)

    def tail(self) -> str:
        return f"N0{self.office:02}{next(self._tails):06}"  # no registered number has a zero after the N


class Desk:
    """One worker's tasks. A task runs in a transaction and returns the rows it wrote, 0 if it found none."""

    def __init__(self, rng: random.Random, numbers: Numbers) -> None:
        self.random = rng
        self.numbers = numbers
        self.tasks: dict[Callable[[Session], int], int] = {
            self.delay: 25,
            self.depart: 10,
            self.cancel: 10,
            self.change_plane: 15,
            self.swap_planes: 5,
            self.rebook: 5,
            self.storm: 2,
            self.schedule: 10,
            self.drop: 5,
            self.register_plane: 3,
            self.correct_weather: 10,
        }

    def choose(self) -> Callable[[Session], int]:
        return self.random.choices(list(self.tasks), list(self.tasks.values()))[0]

    # One row.

    def delay(self, session: Session) -> int:
        """A flight leaves later than it said (Core: one statement, computed by the database)."""
        later = self.random.randint(1, 90) * MINUTE
        return _rows(
            session,
            update(Flight)
            .where(Flight.id.in_(self.flights(session)), Flight.departed.is_not(None))
            .values(
                departed=Flight.departed + later,
                arrived=Flight.arrived + later,
                remark=f"{later // MINUTE} minutes late",
            ),
        )

    def depart(self, session: Session) -> int:
        """A flight is in the air (unit of work: read, think, write)."""
        flight = self.lock(session, self.flights(session))
        if not flight or flight[0].status is Status.cancelled:
            return 0
        flight[0].departed = flight[0].scheduled_departure + self.random.randint(-5, 30) * MINUTE
        flight[0].arrived, flight[0].air_time = None, None
        flight[0].status, flight[0].remark = Status.airborne, None
        return 1

    def cancel(self, session: Session) -> int:
        return _rows(session, _cancelled(self.flights(session), "cancelled by the office"))

    def change_plane(self, session: Session) -> int:
        """Another plane, or none yet (unit of work: through the relationship)."""
        flights, plane = self.lock(session, self.flights(session)), self.plane(session)
        for flight in flights:
            flight.plane = plane if self.random.random() < 0.9 else None
            flight.tail_number = flight.plane.tail_number if flight.plane else None
        return len(flights)

    def schedule(self, session: Session) -> int:
        flight = self.new_flight(session)
        if flight is None:
            return 0
        session.add(flight)
        return 1

    def drop(self, session: Session) -> int:
        """A flight that should never have been there."""
        return _rows(session, delete(Flight).where(Flight.id.in_(self.flights(session))))

    def register_plane(self, session: Session) -> int:
        session.add(self.new_plane())
        return 1

    def correct_weather(self, session: Session) -> int:
        """A better reading for one hour at one airport; the data set has a wind of 1,048 miles per hour."""
        span = self.span(session)
        if span is None:
            return 0
        hour = (
            select(Weather.id)
            .where(Weather.observed_at >= self.moment(span))
            .order_by(Weather.observed_at, Weather.airport_id)
            .limit(1)
        )
        wind = func.least(Weather.wind_speed + self.random.randint(0, 5), 60)
        found = session.scalars(hour).all()
        return _rows(
            session,
            update(Weather)
            .where(Weather.id.in_(found))
            .values(wind_speed=wind, visibility=self.random.randint(0, 10)),
        )

    # Several rows, several statements.

    def swap_planes(self, session: Session) -> int:
        """Two flights exchange their planes."""
        flights = self.lock(session, self.flights(session, 2))
        if len(flights) < 2:
            return 0
        one, two = flights
        one.plane_id, two.plane_id = two.plane_id, one.plane_id
        one.tail_number, two.tail_number = two.tail_number, one.tail_number
        return 2

    def rebook(self, session: Session) -> int:
        """A flight is cancelled, and a new one with a new plane takes its passengers."""
        replacement, flights = self.new_flight(session), self.flights(session)
        if replacement is None or not _rows(session, _cancelled(flights, "passengers rebooked")):
            return 0
        replacement.plane = self.new_plane()
        session.add(replacement)
        return 3

    def storm(self, session: Session) -> int:
        """Nothing leaves for a while: a small bulk update, the office's longest transaction."""
        flights = self.flights(session, self.random.randint(20, 120))
        session.scalars(
            select(Flight.id).where(Flight.id.in_(flights)).order_by(Flight.id).with_for_update()
        ).all()
        hours = self.random.randint(1, 4) * 60 * MINUTE
        changed = _rows(
            session,
            update(Flight)
            .where(Flight.id.in_(flights), Flight.departed.is_not(None))
            .values(departed=Flight.departed + hours, arrived=Flight.arrived + hours, remark="thunderstorms"),
        )
        return changed + _rows(
            session,
            update(Flight)
            .where(Flight.id.in_(flights), Flight.departed.is_(None))
            .values(remark="thunderstorms"),
        )

    # What they work on.

    def flights(self, session: Session, count: int = 1) -> Sequence[UUID]:
        """Flights leaving one after the other; one time in four among the very first, where all are busy."""
        span = self.span(session)
        if span is None:
            return []
        busy = self.random.random() < 0.25
        query = select(Flight.id).where(
            Flight.scheduled_departure >= (span[0] if busy else self.moment(span))
        )
        query = query.order_by(Flight.scheduled_departure, Flight.id).limit(count)
        return session.scalars(query.offset(self.random.randrange(30)) if busy else query).all()

    def lock(self, session: Session, flights: Sequence[UUID]) -> Sequence[Flight]:
        return session.scalars(
            select(Flight).where(Flight.id.in_(flights)).order_by(Flight.id).with_for_update()
        ).all()

    def plane(self, session: Session) -> Plane | None:
        start = f"N{self.random.randint(0, 999)}"
        return session.scalars(
            select(Plane).where(Plane.tail_number >= start).order_by(Plane.tail_number).limit(1)
        ).first()

    def new_plane(self) -> Plane:
        return Plane(
            tail_number=self.numbers.tail(),
            built=2013,
            type="Fixed wing multi engine",
            manufacturer="AIRBUS",
            model=f"A{self.random.randint(318, 350)}",
            engines=2,
            seats=self.random.choice([50, 90, 140, 200]),
            engine="Turbo-fan",
        )

    def new_flight(self, session: Session) -> Flight | None:
        """A flight like one that is there, on some day of the span."""
        span, pattern = self.span(session), self.flights(session)
        like = session.get(Flight, pattern[0]) if pattern else None
        if span is None or like is None:
            return None
        departure = self.moment(span).replace(second=0, microsecond=0)
        return Flight(
            day=departure.astimezone(NEW_YORK).date(),
            airline=self.random.choice(session.scalars(select(Airline).order_by(Airline.carrier)).all()),
            number=self.numbers.flight(),
            origin_id=like.origin_id,
            destination=self.random.choice(session.scalars(select(Airport).order_by(Airport.faa)).all()),
            plane=self.plane(session),
            status=Status.scheduled,
            scheduled_departure=departure,
            scheduled_arrival=departure + self.random.randint(60, 400) * MINUTE,
            distance=self.random.randint(100, 3000),
        )

    def span(self, session: Session) -> Span | None:
        """From the first to the last departure that this office knows of."""
        first = session.scalar(select(func.min(Flight.scheduled_departure)))
        last = session.scalar(select(func.max(Flight.scheduled_departure)))
        return (first, last) if first and last else None

    def moment(self, span: Span) -> dt.datetime:
        return span[0] + (span[1] - span[0]) * self.random.random()


def _cancelled(flights: Sequence[UUID], remark: str) -> Update:
    nothing = {"departed": None, "arrived": None, "air_time": None}
    return (
        update(Flight).where(Flight.id.in_(flights)).values(status=Status.cancelled, remark=remark, **nothing)
    )


def _rows(session: Session, statement: Update | Delete) -> int:
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", result).rowcount

"""The data set into empty tables: by a unit of work where they are small, by Core where they are large.

Invariant: a large table is loaded in transactions of `BATCH` rows, so that others see it grow. Local clock
readings of the data set become moments, with the zone of their airport.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import islice
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from .models import Airline, Airport, Flight, Plane, Status, Weather
from .source import Row, read

BATCH = 4_000
DAY = dt.timedelta(days=1)
Progress = Callable[[str, int], None]  # table, rows committed so far


def load(
    engine: Engine, rows: int | None = None, progress: Progress = lambda table, done: None
) -> dict[str, int]:
    """Everything, or the first `rows` of weather and of flights. Returns the rows loaded per table."""
    with Session(engine) as session, session.begin():
        airlines = [Airline(carrier=row["carrier"], name=row["name"]) for row in read("airlines")]
        airports = [airport(row) for row in read("airports")]
        planes = [plane(row) for row in read("planes")]
        session.add_all([*airlines, *airports, *planes])
        session.flush()
        references = References(
            {one.carrier: one.id for one in airlines},
            {one.faa: one.id for one in airports},
            {one.tail_number: one.id for one in planes},
            {one.faa: ZoneInfo(one.time_zone) for one in airports if one.time_zone},
        )
    done = {"airlines": len(airlines), "airports": len(airports), "planes": len(planes)}
    for table, count in done.items():
        progress(table, count)
    # Rows that return something are inserted many to a statement, others one by one in a pipeline.
    for table, to_row, statement in (
        ("weather", references.weather, insert(Weather).returning(Weather.id)),
        ("flights", references.flight, insert(Flight)),
    ):
        done[table] = 0
        for batch in _batches(map(to_row, islice(read(table), rows))):
            with engine.begin() as connection:
                connection.execute(statement, batch)
            done[table] += len(batch)
            progress(table, done[table])
    return done


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, BATCH)):
        yield batch


def airport(row: Row) -> Airport:
    return Airport(
        faa=row["faa"],
        name=row["name"],
        latitude=float(row["lat"] or 0),
        longitude=float(row["lon"] or 0),
        altitude=int(row["alt"] or 0),
        time_zone=row["tzone"],
    )


def plane(row: Row) -> Plane:
    return Plane(
        tail_number=row["tailnum"],
        built=_int(row["year"]),
        type=row["type"],
        manufacturer=row["manufacturer"],
        model=row["model"],
        engines=_int(row["engines"]),
        seats=_int(row["seats"]),
        speed=_int(row["speed"]),
        engine=row["engine"],
    )


class References:
    """Keys by the codes that the data set uses, and the rows of the large tables made with them."""

    def __init__(
        self,
        airlines: dict[str, UUID],
        airports: dict[str, UUID],
        planes: dict[str, UUID],
        zones: dict[str, ZoneInfo],
    ) -> None:
        self.airlines, self.airports, self.planes, self.zones = airlines, airports, planes, zones

    def weather(self, row: Row) -> dict[str, Any]:
        return {
            "airport_id": self.airports[_code(row, "origin")],
            "observed_at": dt.datetime.fromisoformat(_code(row, "time_hour")),
            "temperature": _decimal(row["temp"]),
            "dew_point": _decimal(row["dewp"]),
            "humidity": _decimal(row["humid"]),
            "wind_direction": _int(row["wind_dir"]),
            "wind_speed": _decimal(row["wind_speed"]),
            "wind_gust": _decimal(row["wind_gust"]),
            "precipitation": _decimal(row["precip"]),
            "pressure": _decimal(row["pressure"]),
            "visibility": _decimal(row["visib"]),
        }

    def flight(self, row: Row) -> dict[str, Any]:
        day = dt.date(int(_code(row, "year")), int(_code(row, "month")), int(_code(row, "day")))
        origin, destination, tail_number = _code(row, "origin"), _code(row, "dest"), row["tailnum"]
        departure = _moment(day, _code(row, "sched_dep_time"), self.zones[origin])
        arrival = _moment(day, _code(row, "sched_arr_time"), self.zones[destination])
        if arrival <= departure:
            arrival += DAY
        departed = _later(departure, row["dep_delay"])
        arrived = _later(arrival, row["arr_delay"])
        return {
            "day": day,
            "airline_id": self.airlines[_code(row, "carrier")],
            "number": int(_code(row, "flight")),
            "origin_id": self.airports[origin],
            "destination_id": self.airports[destination],
            "plane_id": self.planes.get(tail_number) if tail_number else None,
            "tail_number": tail_number,
            "status": Status.cancelled
            if departed is None
            else Status.diverted
            if arrived is None
            else Status.landed,
            "scheduled_departure": departure,
            "departed": departed,
            "scheduled_arrival": arrival,
            "arrived": arrived,
            "air_time": _int(row["air_time"]),
            "distance": int(_code(row, "distance")),
            "remark": None,
        }


def _code(row: Row, column: str) -> str:
    value = row[column]
    if value is None:
        raise ValueError(f"{column} is missing in {row}")
    return value


def _int(value: str | None) -> int | None:
    return None if value is None else int(value)


def _decimal(value: str | None) -> Decimal | None:
    return None if value is None else Decimal(value)


def _moment(day: dt.date, clock: str, zone: ZoneInfo) -> dt.datetime:
    """When the clocks of a zone show 517 for 05:17 on that day."""
    hour, minute = divmod(int(clock), 100)
    return dt.datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).astimezone(dt.UTC)


def _later(moment: dt.datetime, minutes: str | None) -> dt.datetime | None:
    return None if minutes is None else moment + dt.timedelta(minutes=int(minutes))

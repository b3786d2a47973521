"""Five tables: airlines, airports, planes, the weather at the airports, and the flights that need them all.

Invariant: every row has a UUIDv7 key made by the application; the codes people use (carrier, FAA code, tail
number) are unique beside it, and no foreign key points at them. Who changed a row last, and when, is in it.
"""

from __future__ import annotations

import datetime as dt
import enum
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    Index,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from .keys import uuid7

SCHEMA = "flights"

Moment = Annotated[dt.datetime, mapped_column(DateTime(timezone=True))]
Small = Annotated[int, mapped_column(SmallInteger)]
Percent = Annotated[Decimal, mapped_column(Numeric(5, 2))]
Degrees = Annotated[Decimal, mapped_column(Numeric(5, 2))]
Speed = Annotated[Decimal, mapped_column(Numeric(9, 5))]

# An office names itself in its connection; the database writes that name into what it changes.
_office = func.current_setting("application_name")


class Base(DeclarativeBase):
    """What every table has."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s_ix",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        },
    )

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7, sort_order=-1)
    changed_by: Mapped[str] = mapped_column(server_default=_office, onupdate=_office, sort_order=90)
    changed_at: Mapped[Moment] = mapped_column(server_default=func.now(), onupdate=func.now(), sort_order=91)


class Airline(Base):
    __tablename__ = "airlines"

    carrier: Mapped[str] = mapped_column(String(2), unique=True)
    name: Mapped[str]


class Airport(Base):
    __tablename__ = "airports"

    faa: Mapped[str] = mapped_column(String(3), unique=True)
    name: Mapped[str]  # not unique: five are called "Municipal Airport"
    latitude: Mapped[float]
    longitude: Mapped[float]
    altitude: Mapped[int]  # feet
    time_zone: Mapped[str | None]


class Plane(Base):
    __tablename__ = "planes"

    tail_number: Mapped[str] = mapped_column(String(10), unique=True)
    built: Mapped[Small | None]
    type: Mapped[str]
    manufacturer: Mapped[str]
    model: Mapped[str]
    engines: Mapped[Small]
    seats: Mapped[Small]
    speed: Mapped[Small | None]  # miles per hour
    engine: Mapped[str]


class Weather(Base):
    """One hour at one airport."""

    __tablename__ = "weather"
    __table_args__ = (UniqueConstraint("airport_id", "observed_at"),)

    airport_id: Mapped[UUID] = mapped_column(ForeignKey(Airport.id))
    observed_at: Mapped[Moment]
    temperature: Mapped[Degrees | None]  # Fahrenheit
    dew_point: Mapped[Degrees | None]
    humidity: Mapped[Percent | None]
    wind_direction: Mapped[Small | None]  # degrees
    wind_speed: Mapped[Speed | None]  # miles per hour
    wind_gust: Mapped[Speed | None]
    precipitation: Mapped[Decimal] = mapped_column(Numeric(4, 2))  # inches
    pressure: Mapped[Decimal | None] = mapped_column(Numeric(5, 1))  # millibars
    visibility: Mapped[Decimal] = mapped_column(Numeric(4, 2))  # miles

    airport: Mapped[Airport] = relationship()


class Status(enum.Enum):
    scheduled = "scheduled"
    airborne = "airborne"
    landed = "landed"
    cancelled = "cancelled"
    diverted = "diverted"


class Flight(Base):
    __tablename__ = "flights"
    __table_args__ = (
        # A number may leave twice a day, from two airports of New York: the origin belongs to the key.
        UniqueConstraint("day", "airline_id", "number", "origin_id", name="flights_natural_key"),
        CheckConstraint("status <> 'cancelled' or departed is null", name="cancelled_never_departed"),
        CheckConstraint("arrived > departed", name="arrives_after_departure"),
        Index(None, "scheduled_departure"),
        Index(None, "plane_id"),
    )

    day: Mapped[dt.date]  # the local date of the scheduled departure
    airline_id: Mapped[UUID] = mapped_column(ForeignKey(Airline.id))
    number: Mapped[int]
    origin_id: Mapped[UUID] = mapped_column(ForeignKey(Airport.id))
    destination_id: Mapped[UUID] = mapped_column(ForeignKey(Airport.id))
    plane_id: Mapped[UUID | None] = mapped_column(ForeignKey(Plane.id))
    tail_number: Mapped[str | None] = mapped_column(String(10))  # as reported; its plane may be unknown to us
    status: Mapped[Status] = mapped_column(Enum(Status, name="flight_status"))
    scheduled_departure: Mapped[Moment]
    departed: Mapped[Moment | None]
    scheduled_arrival: Mapped[Moment]
    arrived: Mapped[Moment | None]
    air_time: Mapped[Small | None]  # minutes
    distance: Mapped[Small]  # miles
    remark: Mapped[str | None]

    airline: Mapped[Airline] = relationship()
    origin: Mapped[Airport] = relationship(foreign_keys=origin_id)
    destination: Mapped[Airport] = relationship(foreign_keys=destination_id)
    plane: Mapped[Plane | None] = relationship()


TABLES = [table.fullname for table in Base.metadata.sorted_tables]  # parents before children

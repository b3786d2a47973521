"""One site's `config.toml`: read once at start, frozen, passed down.

Invariant: what is loaded is whole and sound. A key that is not known, or an address that is none, stops the
agent with the place and the remedy, before anything is connected.
"""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import msgspec

from syncagent.core import limits
from syncagent.core.lapse import Bounds
from syncagent.core.pace import rate
from syncagent.errors import SyncagentError, UsageError
from syncagent.transport.addresses import host_and_port

FILE = "config.toml"
NOWHERE = "none"
"""`listen` of a site that only dials out."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_KEYS = (
    "name",
    "node",
    "site",
    "incarnation",
    "dsn",
    "listen",
    "advertise",
    "max_clock_skew",
    "addresses",
    "rates",
    "limits",
    "schema",
)

T = TypeVar("T")

_TEMPLATE = """\
# This site of syncagent. `syncagent run` reads it at its start; restart the agent after a change.
# The dsn may hold a password, and this folder the site's private key: keep both to yourself.

name = {name}
node = {node}
site = {site}
incarnation = {incarnation}
dsn = {dsn}

# Where peers reach this site; listen = "none" is for one that only dials out.
listen = {listen}
{advertise}
# Batches of a peer whose clock is so many seconds ahead are held until time catches up.
max_clock_skew = {max_clock_skew}

# Who the other sites are, the cluster knows. Only where this site reaches one of them at another address
# than all the others do, through a tunnel for instance, it is said here:
#
# [addresses]
# tokyo = "10.8.0.2:7400"
#
# How many bytes a second the rows for another site may take at most, where the line has other uses, too. What
# comes from there is limited there.
#
# [rates]
# tokyo = "5MB"
#
# What this site keeps for another one that cannot be reached: for how long, and how much in all. Past either the
# other one lapses, and comes back with `syncagent rejoin`.
#
# [limits]
# away = "30d"
# kept = "10GB"
#
# How long conflicts are shown after they were noticed; those that are open stay.
#
# conflicts = "365d"
#
# What becomes of DDL of replicated tables that somebody types by hand at this site: "report", or "refuse".
#
# [schema]
# typed = "report"
"""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a site is. `listen` is HOST:PORT or "none"; `advertise` is what peers dial; `addresses` is where this
    site reaches some peers, by name, if not at the address that they advertise; `rates` is how many bytes of rows go to
    some in a second, at most; `bounds` is what is kept for a site that is away, `history` for how many seconds conflicts are;
    `refuse_typed`: DDL of replicated tables that is typed by hand is refused."""

    home: Path
    name: str
    node: int
    site: UUID
    incarnation: UUID
    dsn: str
    listen: str
    advertise: str | None = None
    max_clock_skew: float = limits.MAX_CLOCK_SKEW
    addresses: Mapping[str, str] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})
    bounds: Bounds = Bounds()
    history: float = limits.CONFLICT_HISTORY
    refuse_typed: bool = False

    @property
    def address(self) -> str | None:
        """What the others are told; None if nobody can dial this site."""
        return None if self.listen == NOWHERE else self.advertise or self.listen


def default_home() -> Path:
    return Path("/var/lib/syncagent") if os.geteuid() == 0 else Path.home() / ".local/share/syncagent"


def load(home: Path) -> Settings:
    """The settings of a home. UsageError names the line or the entry, and what to do."""
    path = home / FILE
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(
            f"{home} is not the home of a site: there is no {FILE}",
            hint="name it with --home or SYNCAGENT_HOME, or make one with `syncagent init`",
        ) from None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read",
            detail=error.strerror,
            hint="a home is its agent's user's own: run this as that user, or name another with --home",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not valid TOML",
            detail=_sentence(str(error)),
            hint="strings need quotes",
        ) from error
    if "peer" in values:
        raise UsageError(
            f"{path}: peers are not listed here any more",
            hint="remove the [[peer]] entries: the cluster knows them",
        )
    top = _Entry(path, "", values, _KEYS)
    bounds, history = top.optional("limits", _limits) or _limits({})
    return Settings(
        home=home,
        name=top.checked("name", site_name),
        node=top.checked("node", node_number),
        site=top.uuid("site"),
        incarnation=top.uuid("incarnation"),
        dsn=top.text("dsn"),
        listen=top.checked("listen", listen_address),
        advertise=top.optional("advertise", address),
        max_clock_skew=top.optional("max_clock_skew", _skew) or limits.MAX_CLOCK_SKEW,
        addresses=top.optional("addresses", _addresses) or MappingProxyType({}),
        rates=top.optional("rates", _rates) or MappingProxyType({}),
        bounds=bounds,
        history=history,
        refuse_typed=top.optional("schema", _refuse_typed) or False,
    )


def write(settings: Settings, *, again: bool = False) -> Path:
    """Make `config.toml` in the settings' home, readable by its owner alone; overwrites one only `again`, whole."""
    path = settings.home / (f".{FILE}" if again else FILE)
    if again:
        path.unlink(missing_ok=True)
    advertise = f"advertise = {_quote(settings.advertise)}\n" if settings.advertise else ""
    reached = (f"{name} = {_quote(where)}\n" for name, where in settings.addresses.items())
    addresses = "\n[addresses]\n" + "".join(reached) if settings.addresses else ""
    paced = (f'{name} = "{most:.0f}"\n' for name, most in settings.rates.items())
    rates = "\n[rates]\n" + "".join(paced) if settings.rates else ""
    kept = f'away = "{settings.bounds.away:.0f}s"\nkept = "{settings.bounds.kept}"\nconflicts = "{settings.history:.0f}s"\n'
    usual = (settings.bounds, settings.history) == _limits({})
    bounds = "" if usual else "\n[limits]\n" + kept
    schema = '\n[schema]\ntyped = "refuse"\n' if settings.refuse_typed else ""
    text = _TEMPLATE.format(
        name=_quote(settings.name),
        node=settings.node,
        site=_quote(str(settings.site)),
        incarnation=_quote(str(settings.incarnation)),
        dsn=_quote(settings.dsn),
        listen=_quote(settings.listen),
        advertise=advertise,
        max_clock_skew=settings.max_clock_skew,
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text + addresses + rates + bounds + schema)
        file.flush()
        os.fsync(file.fileno())
    return path.replace(settings.home / FILE) if again else path


# ---- one value each: raise UsageError with what is wrong with it


def site_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise UsageError(
            f"{value!r} cannot be a site's name", hint="use up to 63 ASCII letters, digits, - and _"
        )
    return value


def node_number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limits.MAX_NODE:
        raise UsageError(
            f"{value!r} is not a node number",
            hint=f"use a number from 1 to {limits.MAX_NODE} that no other site has",
        )
    return value


def address(value: object) -> str:
    """HOST:PORT that can be dialled."""
    host, port = host_and_port(_string(value))
    if not host or not port:
        raise UsageError(
            f"{value!r} cannot be dialled", hint="give host and port, as in db1.example.org:7400"
        )
    return _string(value)


def listen_address(value: object) -> str:
    if value == NOWHERE:
        return NOWHERE
    host_and_port(_string(value))
    return _string(value)


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not text", hint="put it in quotes")
    return value


def _skew(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UsageError(
            f"{value!r} is not a number of seconds above zero", hint="leave the line out for the default"
        )
    return float(value)


def _addresses(value: object) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise UsageError(
            "not a list of addresses", hint='write it as  [addresses]  and below  tokyo = "host:port"'
        )
    return MappingProxyType({site_name(name): address(where) for name, where in value.items()})


def _rates(value: object) -> Mapping[str, float]:
    if not isinstance(value, dict):
        raise UsageError("not a list of rates", hint='write it as  [rates]  and below  tokyo = "5MB"')
    return MappingProxyType({site_name(name): rate(_string(most)) for name, most in value.items()})


_SPAN = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([smhd])\s*")
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?b)?\s*", re.IGNORECASE)
_SPANS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def _limits(value: object) -> tuple[Bounds, float]:
    """What is kept for a site that is away, and for how many seconds conflicts are."""
    if not isinstance(value, dict) or value.keys() - {"away", "kept", "conflicts"}:
        raise UsageError(
            "not limits",
            hint='write it as  [limits]  and below  away = "30d"  and  kept = "10GB"  and  conflicts = "365d"',
        )
    bounds = Bounds()
    away = _span(value["away"]) if "away" in value else bounds.away
    kept = _size(value["kept"]) if "kept" in value else bounds.kept
    history = _span(value["conflicts"]) if "conflicts" in value else limits.CONFLICT_HISTORY
    return Bounds(away, kept), history


def _refuse_typed(value: object) -> bool:
    if (
        not isinstance(value, dict)
        or value.keys() - {"typed"}
        or value.get("typed") not in ("report", "refuse")
    ):
        raise UsageError(
            "not what becomes of DDL that is typed by hand",
            hint='write it as  [schema]  and below  typed = "report"  or  typed = "refuse"',
        )
    return bool(value["typed"] == "refuse")


def _span(value: object) -> float:
    found = _SPAN.fullmatch(_string(value))
    if not found or not (seconds := float(found[1]) * _SPANS[found[2]]):
        raise UsageError(f"{value!r} is not a time", hint="write it as 90s, 12h or 30d")
    return seconds


def _size(value: object) -> int:
    found = _SIZE.fullmatch(_string(value))
    if not found or not (size := int(float(found[1]) * _SIZES[(found[2] or "").lower()])):
        raise UsageError(f"{value!r} is not a size", hint="write it as 500MB or 10GB")
    return size


# ---- the file's keys


class _Entry:
    """A table of the file; every complaint says which."""

    def __init__(self, path: Path, where: str, values: Mapping[str, Any], known: tuple[str, ...]) -> None:
        self.path, self.where, self._values = path, where, values
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                self.refuse(
                    f"{key!r} is not a setting",
                    f"write {near[0]}" if near else f"known are {', '.join(known)}",
                )

    def refuse(self, what: str, hint: str | None) -> NoReturn:
        raise UsageError(f"{self.path}{self.where}: {what}", hint=hint)

    def checked(self, key: str, check: Callable[[object], T]) -> T:
        if key not in self._values:
            self.refuse(f"{key} is missing", self._remedy(key))
        try:
            return check(self._values[key])
        except SyncagentError as error:
            self.refuse(f"{key}: {error.message}", error.hint)

    def optional(self, key: str, check: Callable[[object], T]) -> T | None:
        return self.checked(key, check) if key in self._values else None

    def text(self, key: str) -> str:
        return self.checked(key, _string) or self.refuse(f"{key} is empty", self._remedy(key))

    def uuid(self, key: str) -> UUID:
        value = self.text(key)
        try:
            return UUID(value)
        except ValueError:
            self.refuse(f"{key}: {value!r} is not a UUID", "restore the line that `syncagent init` wrote")

    def _remedy(self, key: str) -> str:
        return (
            f'add a line like  {key} = "..."'
            if self.where
            else "restore the line that `syncagent init` wrote"
        )


def _quote(value: str) -> str:
    """A TOML basic string; JSON's escapes are TOML's, but for DEL."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]

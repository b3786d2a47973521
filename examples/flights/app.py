"""The application on one PostgreSQL: `python -m examples.flights.app --dsn DSN create load write checksum`.

Invariant: verbs run in the order given, each complete before the next.
"""

import argparse
import threading
import time

from .checksum import checksums
from .database import create, engine
from .load import load
from .writers import Office


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights.app", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--dsn", required=True, help="libpq URI, for example postgresql://flights_app@localhost/flights"
    )
    parser.add_argument("--rows", type=int, help="load only so many flights (and hours of weather)")
    parser.add_argument("--seconds", type=float, default=10, help="how long to write (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what the writers do (default: %(default)s)")
    parser.add_argument(
        "--office",
        type=int,
        choices=range(1, 100),
        default=1,
        metavar="N",
        help="which office this is, 1 to 99 (default: %(default)s)",
    )
    parser.add_argument(
        "verbs",
        nargs="+",
        choices=["create", "load", "write", "checksum"],
        metavar="create|load|write|checksum",
    )
    args = parser.parse_args()

    database = engine(args.dsn, f"office {args.office}")
    for verb in args.verbs:
        started = time.monotonic()
        if verb == "create":
            create(database)
        elif verb == "load":
            for table, rows in load(database, args.rows).items():
                print(f"{table:10} {rows:8}")
        elif verb == "write":
            with Office(database, args.office, args.seed) as office:
                threading.Event().wait(args.seconds)
            office.check()
            for task, count in [*office.done.most_common(), *office.again.most_common()]:
                print(f"{task:24} {count:6}")
        else:
            for table, checksum in checksums(database).items():
                print(f"{table:18} {checksum.rows:8}  {checksum}")
        print(f"{verb}: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()

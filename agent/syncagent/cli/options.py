"""Options that mean the same after every verb, and what a verb is about."""

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="SYNCAGENT_HOME",
        help="Folder of the site: config.toml, key, certificate. [default: /var/lib/syncagent for root,"
        " else ~/.local/share/syncagent]",
        show_default=False,
    ),
]
DsnOption = Annotated[
    str | None,
    typer.Option(
        "--dsn",
        envvar="SYNCAGENT_DSN",
        help="The site's database, as postgresql://user:password@host:5432/database. [default: the home's]",
        show_default=False,
    ),
]
NameOption = Annotated[str, typer.Option(help="The site's name: up to 63 ASCII letters, digits, - and _.")]
ListenOption = Annotated[
    str,
    typer.Option(help='HOST:PORT that the agent listens on, or "none" for a site that only dials out.'),
]
AdvertiseOption = Annotated[
    str | None, typer.Option(help="HOST:PORT that peers dial. [default: --listen]", show_default=False)
]
JsonOption = Annotated[
    bool, typer.Option("--json", envvar="SYNCAGENT_JSON", help="Answer in JSON.", show_default=False)
]


DeepOption = Annotated[
    bool,
    typer.Option(
        "--deep", help="Compute all from the rows first: finds what was written behind the triggers."
    ),
]
ComparedArgument = Annotated[
    list[str] | None, typer.Argument(help="Which; all if none is named.", show_default=False)
]


def home_of(home: Path | None) -> Path:
    """The home that was named, else the default one."""
    from syncagent.settings import default_home

    return (home or default_home()).expanduser().absolute()


def dsn_of(home: Path | None, dsn: str | None) -> str:
    """The database a verb acts through: named, else that of the home."""
    if dsn is not None:
        return dsn
    from syncagent.settings import load

    return load(home_of(home)).dsn


def seconds(text: str) -> float:
    """A time span as people write it: 90, 90s, 5m, 1h, 7d."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number = text.strip().rstrip("hmsd")
    try:
        value = float(number) * units[text.strip()[len(number) :] or "s"]
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{text!r} is not a time: write 90, 90s, 5m or 1h") from None
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is not a time that can be waited")
    return value

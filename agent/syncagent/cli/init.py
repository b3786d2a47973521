"""`syncagent init`: a database and a folder become a site.

Invariant: the home is written inside the database's transaction, and taken back if that fails, so that a
refused or broken init leaves neither behind.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from syncagent.cli import render
from syncagent.cli.options import AdvertiseOption, HomeOption, JsonOption, ListenOption, NameOption, home_of
from syncagent.errors import RefusedError, SyncagentError

if TYPE_CHECKING:
    from syncagent.settings import Settings

_EVERYWHERE = ("", "0.0.0.0", "::")


def init(
    dsn: Annotated[
        str,
        typer.Option(
            envvar="SYNCAGENT_DSN",
            help="The site's database, as postgresql://user:password@host:5432/database.",
        ),
    ],
    name: NameOption,
    listen: ListenOption,
    advertise: AdvertiseOption = None,
    node: Annotated[
        int, typer.Option(help="The site's number, 1 to 65535; each site has its own, for ever.")
    ] = 1,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a database a site: install the SQL side, make the site's key and certificate, write config.toml."""
    from syncagent import settings as configuration

    configuration.site_name(name)
    configuration.node_number(node)
    configuration.listen_address(listen)
    if advertise is not None:
        configuration.address(advertise)
    settings, digest = _make(home_of(home), dsn, name, node, listen, advertise)
    if (
        listen.rpartition(":")[0].strip("[]") in _EVERYWHERE
        and not advertise
        and listen != configuration.NOWHERE
    ):
        render.say(f"note: peers cannot dial {listen}: tell them an address of this host, or use --advertise")
    answer = {
        "node": node,
        "name": name,
        "site": settings.site,
        "listen": listen,
        "advertise": settings.address,
        "sha256": digest,
        "home": str(settings.home),
    }
    if as_json:
        render.json(answer)
    else:
        _tell(settings, digest)


def _make(
    home: Path, dsn: str, name: str, node: int, listen: str, advertise: str | None
) -> "tuple[Settings, str]":
    import asyncio

    from syncagent import settings as configuration
    from syncagent.core import catalog as catalogs
    from syncagent.core.catalog import Site
    from syncagent.core.raft.messages import Membership
    from syncagent.storage import commands, installation, registry
    from syncagent.storage.installation import new_uuid
    from syncagent.storage.session import connect
    from syncagent.transport.tls import Credentials

    refuse_used(home)

    async def agent_can_connect() -> None:
        await (await connect(dsn, "init")).close()

    with commands.connected(dsn) as connection:
        installation.preflight(connection)
        asyncio.run(agent_can_connect())
        with taken_back_on_failure(home), connection.transaction():
            site, incarnation = installation.settle(connection, name, node)
            credentials = Credentials.provide(home, name)
            settings = configuration.Settings(
                home=home,
                name=name,
                node=node,
                site=site,
                incarnation=incarnation,
                dsn=dsn,
                listen=listen,
                advertise=advertise,
            )
            first = Site(
                node=node,
                name=name,
                site=site,
                incarnation=incarnation,
                address=settings.address,
                sha256=(credentials.sha256,),
                state="member",
            )
            registry.found(connection, catalogs.founded(first, new_uuid()), Membership(voters=(node,)))
            configuration.write(settings)
    return settings, credentials.sha256


def refuse_used(home: Path) -> None:
    from syncagent.settings import FILE
    from syncagent.transport.tls import CERTIFICATE, KEY

    if home.exists() and not home.is_dir():
        raise RefusedError(f"{home} is a file", hint="name a folder with --home")
    found = [name for name in (FILE, KEY, CERTIFICATE) if (home / name).exists()]
    if found:
        raise RefusedError(
            f"{home} is the home of a site already",
            detail=f"It holds {', '.join(found)}.",
            hint="choose another one with --home; remove this one only if its site is gone for good",
        )


@contextmanager
def taken_back_on_failure(home: Path) -> Iterator[None]:
    """Make the home; on any failure it is as it was."""
    new = [folder for folder in (home, *home.parents) if not folder.exists()]
    before = set() if home in new else set(home.iterdir())
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except BaseException as problem:
        if home.exists():
            for path in set(home.iterdir()) - before:
                path.unlink()
        for folder in new:
            if folder.exists():
                folder.rmdir()
        if isinstance(problem, OSError):
            raise SyncagentError(
                f"the home {home} cannot be written",
                detail=problem.strerror,
                hint="choose another one with --home",
            ) from problem
        raise


def _tell(settings: "Settings", digest: str) -> None:
    from rich.text import Text

    render.show(
        Text.assemble(
            "Site ", (settings.name, "bold"), f", node {settings.node}, is ready in {settings.home}:"
        ),
        Text("the first of a cluster of its own."),
        Text(f"Its certificate has the SHA-256 {digest}.", "dim"),
        Text("\nThen: syncagent attach TABLE...  and  syncagent run"),
        Text("Another site: syncagent invite  here, and  syncagent join  there"),
    )

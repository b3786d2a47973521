"""Sites of one application that came from elsewhere: its programs run at every site, syncagent keeps them equal.

Invariant: a program of the application gets a DSN of one of the application's two roles, and nothing of syncagent:
the owner, who runs migrations, or the role that works all day, which may read and write rows and no more.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import sql

from syncagent.embedded import Binaries

from . import compare
from .compare import Checksum
from .sites import CHECK_SECONDS, Site, SiteError, communicate

ROOT = Path(__file__).parents[1]
CONVERGE_SECONDS = 300
WAIT_SECONDS = 60
ROLE_SETUP = """
revoke all on database {database} from public;
grant connect, temporary on database {database} to {owner};
grant connect on database {database} to {role};
revoke all on schema public from public;
alter schema public owner to {owner};
grant usage on schema public to {role};
alter default privileges for role {owner} in schema public grant select, insert, update, delete on tables to {role};
alter default privileges for role {owner} in schema public grant usage on sequences to {role};
"""
GRANTED = """
select relname::text from pg_class where relnamespace = 'syncagent'::regnamespace and relkind in ('r', 'p', 'v')
and has_table_privilege(%s, oid, 'select, insert, update, delete')
"""
TABLES = (
    "select quote_ident(tablename) from pg_tables where schemaname = 'public' and tablename <> %s order by 1"
)


@dataclass(frozen=True)
class Application:
    """What must be known of it."""

    name: str
    program: tuple[str, ...]
    """Arguments of Python that run it; a verb and its options follow."""
    environment: Callable[[str], dict[str, str]]
    """What it finds its database by, made of a DSN."""
    history: str
    """The table of its migrations, which are run at every site."""
    own: tuple[str, ...] = ()
    """Other tables that belong to one site."""
    reported: tuple[str, ...] = ()
    """Unique constraints whose values mean something as they are: of two rows with one value none is to yield it by itself."""

    @property
    def owner(self) -> str:
        return f"{self.name}_owner"

    @property
    def role(self) -> str:
        return f"{self.name}_app"

    @property
    def policies(self) -> list[str]:
        return [word for name in self.reported for word in ("--on-unique", f"{name}=report")]

    @property
    def excluded(self) -> list[str]:
        return [word for table in (self.history, *self.own) for word in ("--exclude", table)]


class Cluster:
    """`with` it, everything that it starts is stopped at the end."""

    def __init__(self, application: Application, number: int, folder: Path, binaries: Binaries) -> None:
        self.application = application
        self.sites = [Site(i, folder, binaries, application.name) for i in range(1, number + 1)]
        self.tables: list[str] = []
        self._folder = folder
        self._open = ExitStack()
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        self._threads = self._open.enter_context(ThreadPoolExecutor(len(self.sites) * 2))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._open.close()

    # ---- the application

    def start(self) -> None:
        """Running servers with the application's roles, and a database that is the owner's."""
        names = {
            "database": sql.Identifier(self.application.name),
            "owner": sql.Identifier(self.application.owner),
            "role": sql.Identifier(self.application.role),
        }
        for site in self.sites:
            self._open.callback(site.stop)
            site.start()
            for role in (self.application.owner, self.application.role):
                site.server.create_role(role)
            site.server.execute(sql.SQL(ROLE_SETUP).format(**names), self.application.name)

    def program(self, site: Site, *arguments: str, owner: bool = False) -> str:
        """Run the application at one site to its end; what it printed."""
        role = self.application.owner if owner else self.application.role
        dsn = site.server.dsn(self.application.name, role)
        quiet = {name: value for name, value in os.environ.items() if not name.startswith("SYNCAGENT_")}
        with subprocess.Popen(
            [sys.executable, *self.application.program, *arguments],
            cwd=self._folder,
            env=quiet | {"PYTHONPATH": str(ROOT)} | self.application.environment(dsn),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                answer, talk = communicate(process, self._still_wanted)
            finally:
                process.kill()  # does nothing to one that has ended
        if process.returncode:
            what = f"`{arguments[0]}` of {self.application.name} at {site.name} ended with exit code {process.returncode}"
            raise SiteError(f"{what}:\n{talk}{answer}".rstrip())
        return answer

    def everywhere(self, arguments: Callable[[Site], Sequence[str]], *, owner: bool = False) -> list[str]:
        """Run it at all sites at the same time; what it printed at each, in their order."""
        futures = {
            self._threads.submit(self.program, site, *arguments(site), owner=owner): site
            for site in self.sites
        }
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            self._stopped.set()
            raise
        self.check()
        return [future.result() for future in futures]

    def reports(self) -> list[dict[str, Any]]:
        """What the application's own reading finds at each site."""
        return [json.loads(answer) for answer in self.everywhere(lambda _: ["report"])]

    def _still_wanted(self) -> None:
        if self._stopped.is_set():
            raise SiteError(f"{self.application.name} was stopped")

    # ---- syncagent

    def adopt(self) -> str:
        """What it says of the first site's database, before it is a site."""
        return self.sites[0].told(
            "adopt", "--dsn", self.sites[0].dsn, *self.application.excluded, codes=(0, 1)
        )

    def connect(self, *options: str) -> None:
        """Make sites of them. The rows are the first one's; what migrations wrote at the others is taken out."""
        for site in self.sites[1:]:
            with psycopg.connect(site.dsn) as connection:
                names = [name for (name,) in connection.execute(TABLES, (self.application.history,))]
                connection.execute(sql.SQL("truncate {}").format(sql.SQL(", ").join(map(sql.SQL, names))))
        first, *others = self.sites
        first.found()
        first.attach("--all", *self.application.excluded, *self.application.policies, *options)
        for site in others:
            site.join(first)
        with psycopg.connect(self.sites[0].dsn) as connection:
            if found := connection.execute(GRANTED, (self.application.role,)).fetchall():
                raise SiteError(f"{self.application.role} has rights on {found}")
        self.tables = [table["table_name"] for table in self.sites[0].ask("tables", "--json")]

    def check(self) -> None:
        """Raise if an agent has ended by itself."""
        for site in self.sites:
            site.check()

    def converge(self) -> None:
        self.sites[0].wait_converged(CONVERGE_SECONDS, self.check)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """No site applies anything of another one meanwhile."""
        for site in self.sites:
            site.command("pause")
        yield
        for site in self.sites:
            site.command("resume")

    def parked(self) -> list[list[dict[str, Any]]]:
        """Rows that wait, at each site."""
        return [site.ask("parked", "list", "--json") for site in self.sites]

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Look again and again."""
        pause = threading.Event()
        for _ in range(int(WAIT_SECONDS / CHECK_SECONDS)):
            if reached():
                return
            self.check()
            pause.wait(CHECK_SECONDS)
        raise SiteError(f"not within {WAIT_SECONDS} s: {what}")

    # ---- equality

    def compare(self) -> list[dict[str, Checksum]]:
        return [compare.checksums(site.dsn, self.tables) for site in self.sites]

    def differences(self, tables: Sequence[str]) -> Iterator[str]:
        dsns = {site.name: site.dsn for site in self.sites}
        for table in tables:
            yield table
            yield from compare.differences(dsns, table)

    def logs(self) -> Iterator[str]:
        for site in self.sites:
            yield f"--- the last lines of the agent of {site.name}\n{site.log_tail()}"

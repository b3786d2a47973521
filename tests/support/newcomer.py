"""The path of somebody who has nothing but the README: what it says is typed, in its order, in a clone of what is committed.

`make newcomer`. No cache, no environment, no home but its own: what only works where it was developed fails here. Whatever is typed is
read from the README; only what a newcomer replaces is replaced: the package by the wheel of this commit, for it may not be published, hosts
and databases by two servers that are started beside it. `make test` takes a quarter of an hour and is typed only with FULL=1. With `--packaged` it
begins at `pip install`: `make test` does so, which is what the lines before it type.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from syncagent.embedded import free_port, scratch
from tests.support.postgres import Servers
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
TABLES = ("customers", "orders", "order_lines")
_ALIKE = {"PATH", "LANG", "LC_ALL", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE"}
"""Of the environment that is kept, with what says where packages come from."""


def blocks(readme: str) -> list[list[str]]:
    """The commands of each block of code, without the picture."""
    found = re.findall(r"^```\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    commands = [[line.partition("  #")[0].strip() for line in block.splitlines()] for block in found]
    return [block for block in commands if block[0].startswith(("make ", "pip ", "syncagent "))]


class Newcomer:
    """Types what is read, in a folder of its own."""

    def __init__(self, folder: Path, servers: Servers) -> None:
        self.folder, self.clone, self.venv = folder, folder / "syncagent", folder / "venv"
        self.token = ""
        self.agents: list[subprocess.Popen[bytes]] = []
        self.servers = {"berlin": servers.of(18), "tokyo": servers.of(15)}
        self.address = {name: f"127.0.0.1:{free_port()}" for name in self.servers}
        self.environment = {
            name: value for name, value in os.environ.items() if name in _ALIKE or name.startswith("PIP_")
        } | {"HOME": str(folder / "home"), "PIP_NO_CACHE_DIR": "1"}
        (folder / "home").mkdir()

    def run(self, *command: str | Path, at: Path | None = None, site: str = "") -> str:
        """What it says on stdout; it must succeed."""
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=at or self.folder,
            env=self.environment | self._of(site),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        typed = re.sub(r"sa1-\S+", "sa1-…", shlex.join(map(str, command)))
        typed = re.sub(r"(?<=//)[^/@\s]+@", "", typed)
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {typed[:150]}\n")
        sys.stdout.flush()
        if done.returncode:
            raise SystemExit(f"it ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def _of(self, site: str) -> dict[str, str]:
        return {"SYNCAGENT_HOME": str(self.folder / "homes" / site)} if site else {}

    # ---- the commands

    def make(self, command: str) -> None:
        if command != "make test" or os.environ.get("FULL"):
            said = self.run(*shlex.split(command), at=self.clone)
            sys.stdout.write(f"          {said.splitlines()[-1]}\n")
        else:
            self.run("make", "check", at=self.clone)

    def pip(self, command: str) -> None:
        self.run(sys.executable, "-m", "venv", self.venv)
        pip = self.venv / "bin" / "pip"
        self.run(pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", self.folder, self.clone)
        (wheel,) = self.folder.glob("*.whl")
        self.run(pip, *[str(wheel) if word == "syncagent" else word for word in shlex.split(command)[1:]])

    def syncagent(self, command: str, site: str) -> None:
        words = [self._real(word, site) for word in shlex.split(command)[1:]]
        program = self.venv / "bin" / "syncagent"
        if words == ["run"]:
            log = (self.folder / f"{site}.log").open("wb")
            self.agents.append(
                subprocess.Popen([program, *words], env=self.environment | self._of(site), stderr=log)
            )
            until(lambda: b"running" in (self.folder / f"{site}.log").read_bytes(), f"the agent of {site}")
            return
        said = self.run(program, *words, site=site)
        if words == ["invite"]:
            self.token = said.strip()

    def _real(self, word: str, site: str) -> str:
        """What a newcomer puts in the place of an example."""
        if word.startswith("postgresql://"):
            return self.servers[site].dsn("shop")
        if word == "0.0.0.0:7400":
            return self.address[site]
        if word.startswith("sa1-"):
            return self.token
        return word.replace("berlin.example.org:7400", self.address["berlin"])

    def databases(self) -> None:
        """What is there before: an application's database at Berlin, an empty one at Tokyo."""
        for server in self.servers.values():
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("create database shop")
        with psycopg.connect(self.servers["berlin"].dsn("shop"), autocommit=True) as connection:
            for table in TABLES:
                connection.execute(
                    f"create table {table} (id uuid primary key default gen_random_uuid(), v text)".encode()
                )
                connection.execute(
                    f"insert into {table} (v) select i::text from generate_series(1, 100) i".encode()
                )

    def count(self, site: str) -> int:
        with psycopg.connect(self.servers[site].dsn("shop"), autocommit=True) as connection:
            return sum(
                connection.execute(f"select count(*) from {t}".encode()).fetchall()[0][0] for t in TABLES
            )

    def close(self) -> None:
        for agent in self.agents:
            agent.terminate()
            if agent.wait(30):
                raise SystemExit("an agent did not stop cleanly")


def followed(newcomer: Newcomer, *, packaged: bool) -> Iterator[str]:
    """Everything the README says, block by block; `packaged`: from the package on."""
    newcomer.run("git", "clone", "--quiet", "--no-hardlinks", ROOT, newcomer.clone)
    makes, first, second = blocks((newcomer.clone / "README.md").read_text())
    if not packaged:
        for command in makes:
            newcomer.make(command)
        yield "shown"
    newcomer.databases()
    for command in first:
        if command.startswith("pip "):
            newcomer.pip(command)
        else:
            newcomer.syncagent(command, "berlin")
    yield "one site"
    for command in second:
        newcomer.syncagent(command, "tokyo")
    assert newcomer.count("tokyo") == newcomer.count("berlin") == 300, "the rows are at both"
    with psycopg.connect(newcomer.servers["tokyo"].dsn("shop"), autocommit=True) as connection:
        connection.execute("insert into orders (v) values ('from tokyo')")
    until(lambda: newcomer.count("berlin") == 301, "what Tokyo writes is at Berlin")
    yield "two sites"


def main() -> None:
    began = time.monotonic()
    with scratch("syncagent-newcomer-") as data, tempfile.TemporaryDirectory() as name:
        servers = Servers(data)
        newcomer = Newcomer(Path(name), servers)
        try:
            for reached in followed(newcomer, packaged="--packaged" in sys.argv[1:]):
                sys.stdout.write(f"{time.monotonic() - began:6.1f} s  == {reached}\n")
        finally:
            newcomer.close()
            servers.stop()


if __name__ == "__main__":
    main()

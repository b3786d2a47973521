"""`docs/tutorial.md` as a script: what is typed there is done, and what is answered must be what the page says.

`python -m tests.support.transcript` writes the answers into the page. Times, counts, digests and tokens
differ from run to run, and are not compared.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg

from syncagent.embedded import scratch
from tests.support import nursery
from tests.support.fleet import Member, fleet
from tests.support.postgres import Servers
from tests.support.waiting import until

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_COMMAND = re.compile(r"(\w+)\$ (?:SYNCAGENT_TOKEN=\S+ )?(\w+) (.*)")
_WORDS = re.compile(r'"([^"]*)"|(\S+)')
_SOMETIMES = ("copying: ", "waiting for ")
"""Said by who takes its time."""
_LINKED = (
    "select count(*) filter (where not is_self) = %s and bool_and(is_self or linked and coalesce(behind_rows, 0) = 0)"
    " and bool_and(is_self or applied_cut is not null and rtt_ms is not null)"
    " and bool_and(waiting is null and trouble is null) and bool_or(leads) and count(*) filter (where role = 'voter') = %s from syncagent.status"
)


class Script:
    """Does the commands, one after the other."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self.members = members
        self._token = ""
        self._running = 0
        self._conflict = ""
        self._real = {f"localhost:740{n}": member.address for n, member in enumerate(members.values(), 1)}

    def do(self, command: str) -> str:
        """What is answered, as the page shows it."""
        found = _COMMAND.fullmatch(command)
        assert found is not None, command
        member, program = self.members[found[1]], found[2]
        words = [quoted or plain for quoted, plain in _WORDS.findall(found[3])]
        if program == "export":
            return ""
        if program == "kill":
            member.stop(kill=True)
            self._running -= 1
            return ""
        if program == "psql":
            return self._psql(member, words[-1])
        if words[0] == "run":
            return self._run(member)
        if words[0] == "status":
            others, votes = self._running - 1, self._running - (self._running + 1) % 2
            until(lambda: member.scalar(_LINKED, (others, votes)), "all are linked")
        return self._syncagent(member, words)

    def _psql(self, member: Member, statement: str) -> str:
        with psycopg.connect(member.database.dsn) as connection:
            done = connection.execute(statement.encode())
            return str(done.fetchall()[0][0]) if done.description else str(done.statusmessage)

    def _run(self, member: Member) -> str:
        before = len(member.log.read_text()) if member.log.exists() else 0
        member.start(as_json=False)
        self._running += 1
        line = until(lambda: re.search(r".*running.*", member.log.read_text()[before:]), "it says so")
        assert line is not None
        return self._shown(member, line[0])

    def _syncagent(self, member: Member, words: list[str]) -> str:
        typed = [self._real.get(word, self._conflict if word == "ID" else word) for word in words]
        typed = [member.database.dsn if word.startswith("postgresql:") else word for word in typed]
        done = nursery.run(
            *typed,
            together=True,
            environment={
                **{name: value for name, value in os.environ.items() if not name.startswith("SYNCAGENT_")},
                "SYNCAGENT_HOME": str(member.home),
                "SYNCAGENT_TOKEN": self._token,
            },
        )
        assert done.returncode == 0, done.stdout
        if token := re.search(r"^sa1-\S+", done.stdout, re.MULTILINE):
            self._token = token[0]
        if words[:2] == ["conflicts", "list"]:
            self._conflict = done.stdout.splitlines()[1].split()[0]
        return self._shown(member, done.stdout)

    def _shown(self, member: Member, text: str) -> str:
        """With the names of the page."""
        for name, address in self._real.items():
            text = text.replace(address, name)
        return text.replace(str(member.home.parent), "/home/ada/tutorial").strip()


def performed(page: str, script: Script) -> Iterator[str]:
    """The lines of the page, with what is answered now."""
    inside = False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
            yield line
        elif not inside:
            yield line
        elif _COMMAND.fullmatch(line):
            yield line
            yield from (answer.rstrip() for answer in script.do(line).splitlines())


def compared(page: str) -> list[str]:
    """What must be the same in every run."""
    page = re.sub(r"sa1-\S+", "TOKEN", page)
    page = re.sub(r"\b[0-9a-f]{64}\b", "SHA-256", page)
    page = re.sub(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){1,3}(-[0-9a-f]{12})?\b", "ID", page)
    page = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+Z?", "TIME", page)
    page = re.sub(r"[+-]?\d[\d.,]*", "#", page)
    page = re.sub(
        r"(noticed .* by|update/update +\w+ +\w+) +\w+(?:, \w+)*$", r"\1 SITES", page, flags=re.MULTILINE
    )  # who met both
    page = re.sub(r"\brows?\b", "rows", page)
    page = re.sub(r"\b[kM]B\b", "B", page)
    page = re.sub(r"\bleader\b", "voter", page)  # anyone of them may lead
    lines = [" ".join(line.split()) for line in page.splitlines()]
    return [line for line in lines if not line.startswith(_SOMETIMES)]


def perform(page: str, servers: Servers, folder: Path) -> str:
    with fleet(folder, "", *[servers.of(18)] * 3) as members:
        script = Script({member.name: member for member in members})
        return "\n".join(performed(page, script)) + "\n"


def main() -> None:
    with scratch("syncagent-transcript-") as scratched, tempfile.TemporaryDirectory() as homes:
        servers = Servers(scratched)
        try:
            PAGE.write_text(perform(PAGE.read_text(), servers, Path(homes)))
        finally:
            servers.stop()
    sys.stderr.write(f"wrote {PAGE}\n")


if __name__ == "__main__":
    main()

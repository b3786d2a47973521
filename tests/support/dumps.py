"""What pg_dump says of a database: the judge of whether two have the same schema."""

import re
import subprocess

from syncagent.embedded import Server
from tests.support.databases import Database

_ENTRY = re.compile(r"^--\n-- (?=Name: .*; Type: )", re.MULTILINE)
_NAME_OF_NOT_NULL = re.compile(r'CONSTRAINT (?:"(?:[^"]|"")*"|\S+) (?=NOT NULL)')
_OURS = re.compile(r"Name: syncagent_\w+; Type: EVENT TRIGGER")
_NOISE = re.compile(r"^(SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*|--.*|\s*)$")


def dumped(database: Database, by: Server | None = None) -> set[str]:
    """The entries of the schema, each with its header, whatever their order.

    Two servers of different versions are compared `by` the pg_dump of the newer one, and without the names of
    NOT NULL, which versions before 18 do not keep.
    """
    tool = (by or database.server).binaries.tool("pg_dump")
    done = subprocess.run(
        [tool, "--schema-only", "--exclude-schema=syncagent", database.dsn],
        check=True,
        capture_output=True,
        text=True,
    )
    text = _NAME_OF_NOT_NULL.sub("", done.stdout) if by else done.stdout
    return {_plain(entry) for entry in _ENTRY.split(text)[1:] if not _OURS.match(entry)}


def _plain(entry: str) -> str:
    header, _, text = entry.partition("\n")
    lines = [line.rstrip() for line in text.splitlines() if not _NOISE.match(line)]
    if "; Type: ACL;" in header:
        lines.sort()
    return "\n".join([re.sub(r"^Name: ", "", header), *lines])

"""Alembic revisions of an application: their schema goes to every site, their rows are written at one and replicate."""

import asyncio
from pathlib import Path

import pytest
from alembic.script import Script

from syncagent.core.schema import Open
from syncagent.errors import Contended, RefusedError
from syncagent.storage.commands import connected
from syncagent.storage.schema import planning, revisions
from tests.sql.conftest import Pair, Sites
from tests.sql.test_schema_changes import Fleet
from tests.support.lab import Site, exchange, key, same

SCHEMA = "create table item (id uuid primary key, value int, note text)"
FIRST = """
def upgrade():
    op.create_table("tag", sa.Column("id", sa.Uuid, primary_key=True), sa.Column("name", sa.Text, nullable=False))
    op.create_index("tag_name", "tag", ["name"])
    op.bulk_insert(sa.table("tag", sa.column("id", sa.Uuid), sa.column("name", sa.Text)),
                   [{"id": uuid.UUID("01900000-0000-7000-8000-00000000000a"), "name": "50%"}])
"""
SECOND = """
def upgrade():
    op.add_column("item", sa.Column("size", sa.Integer))
    bind = op.get_bind()
    for key, value in bind.execute(sa.text("select id, value from item")):
        bind.execute(sa.text("update item set size = :size where id = :id"), {"size": len(str(value)), "id": key})
    op.execute("update item set note = 'seen' where note is null")
    op.alter_column("item", "size", nullable=False)
"""
MIXED = """
def upgrade():
    op.execute("update item set value = 1")
    op.add_column("item", sa.Column("late", sa.Integer))
    op.execute("update item set late = 1")
"""


def application(folder: Path, *bodies: str) -> Path:
    """Its alembic.ini, and a revision for each body."""
    (folder / "versions").mkdir()
    (folder / "alembic.ini").write_text(f"[alembic]\nscript_location = {folder}\npath_separator = os\n")
    for number, body in enumerate(bodies, 1):
        down = f"'r{number - 1}'" if number > 1 else None
        head = f'"""number {number}"""\nimport uuid\nimport sqlalchemy as sa\nfrom alembic import op\nrevision = "r{number}"\ndown_revision = {down}\n'
        (folder / "versions" / f"r{number}.py").write_text(head + body)
    return folder / "alembic.ini"


async def carried(fleet: Fleet, site: Site, script: Script) -> None:
    """As `syncagent schema apply --alembic` does it at a site."""
    revision = await asyncio.to_thread(revisions.listened, site.dsn, script)
    with connected(site.dsn) as connection:
        found = planning.plan_of(
            connection,
            planning.Source(script.revision, "", (*revision.before, *revision.after)),
            role=None,
            stride=None,
            bucket="hour",
            patience=5,
        )
    assert not found.refusals, found.refusals
    whole = planning.of_revision(found, revision, site.node)
    fleet.tell(Open(planning.change_of(whole, at=0, site="site1", role=None, path="public", auto=True)))
    while fleet.let_go():
        for one in fleet.sites:
            try:
                await fleet.follow(one)
            except Contended:
                await asyncio.to_thread(revisions.run_data, site.dsn, script)
                await asyncio.to_thread(revisions.run_data, site.dsn, script)
                await fleet.follow(one)
        await exchange(*fleet.sites)


async def test_revisions_are_carried(sites: Sites, pair: Pair, tmp_path: Path) -> None:
    a, b = await sites(SCHEMA, *pair)
    ini, fleet = application(tmp_path, FIRST, SECOND, MIXED), Fleet(a, b)
    await b.do(
        f"insert into item values ('{key(1)}', 1, null), ('{key(2)}', 22, 'x'), ('{key(3)}', 333, null)"
    )
    await exchange(a, b)
    for number in (1, 2):
        with connected(a.dsn) as connection:
            script = revisions.pending(connection, ini)[0]
        assert script.revision == f"r{number}"
        await carried(fleet, a, script)
    assert await same("tag", a, b) == ["(01900000-0000-7000-8000-00000000000a,50%)"]
    await same("item", a, b)
    assert await b.rows("select size, note from item order by value") == [(1, "seen"), (2, "x"), (3, "seen")]
    for site in (a, b):
        assert await site.table("alembic_version") == ["(r2)"]
        with pytest.raises(Exception, match="null value"):
            await site.do("insert into item (id) values (syncagent.uuid7())")
    assert await b.rows("select * from syncagent.revision_data") == []
    with connected(a.dsn) as connection:
        (script,) = revisions.pending(connection, ini)
    with pytest.raises(
        RefusedError, match=r"revision r3, line 11: rows are written again .* in line 10"
    ) as refused:
        await asyncio.to_thread(revisions.listened, a.dsn, script)
    assert refused.value.hint == "split it: everything up to line 9 is one revision, the rest another"

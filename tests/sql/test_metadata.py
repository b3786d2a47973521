"""SQLAlchemy's metadata as the source of a change: what Alembic finds to differ, planned like any other."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from syncagent.errors import UsageError
from syncagent.storage.commands import connected
from syncagent.storage.schema import metadata
from tests.sql.conftest import Pair, Sites
from tests.sql.test_schema_changes import Fleet
from tests.support.lab import Site, key

SCHEMA = """
    create table item (id uuid primary key, value int, note text, gone text);
    create index item_gone on item (gone);
"""


def wanted() -> sa.MetaData:
    found = sa.MetaData()
    sa.Table(
        "item",
        found,
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("value", sa.BigInteger),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, server_default="7"),
        sa.Index("item_size", "size"),
    )
    sa.Table("tag", found, sa.Column("id", sa.Uuid, primary_key=True), sa.Column("name", sa.Text))
    return found


async def differing(site: Site, found: sa.MetaData) -> str:
    def look() -> str:
        with connected(site.dsn) as connection:
            return metadata.difference(connection, site.dsn, found)

    return await asyncio.to_thread(look)


async def test_a_metadata_becomes_a_change_that_leads_there(sites: Sites, pair: Pair) -> None:
    """Carried, nothing differs any more; a table that only the site has is not dropped."""
    a, b = await sites(SCHEMA, *pair)
    await a.do("create table alone (id int)", f"insert into item values ('{key(1)}', 1, 'x')")
    fleet = Fleet(a, b)
    text = await differing(a, wanted())
    assert "alone" not in text
    # the way back of a type is what nobody can guess
    found = await asyncio.to_thread(fleet.planned, text)
    assert ["-- down:" in refusal.form for refusal in found.refusals] == [True]
    await fleet.carry(
        text.replace(
            "ALTER TABLE item ALTER COLUMN value",
            "-- down: value_new::int\nALTER TABLE item ALTER COLUMN value",
        )
    )
    assert await differing(a, wanted()) == await differing(b, wanted()) == ""
    assert await a.rows("select size from item") == [(7,)]


def test_what_is_no_metadata_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop_models.py").write_text(
        "import sqlalchemy as sa\nclass Base:\n    metadata = sa.MetaData()\n"
    )
    assert isinstance(metadata.loaded("shop_models:Base.metadata"), sa.MetaData)
    for name, told in (
        ("shop_models:Base", "is no MetaData"),
        ("shop_models:Other.metadata", "Other"),
        ("no_such_models:x", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=told) as refused:
            metadata.loaded(name)
        assert refused.value.hint

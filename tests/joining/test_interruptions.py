"""A copy that meets what it cannot have, or that is interrupted: refused clearly, or gone on with where it was."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from syncagent.core.copying import Range
from syncagent.embedded import Server
from syncagent.errors import CopyDiffers, LinkDown, RefusedError, SyncagentError
from syncagent.services.joiner import CopyProgress
from syncagent.transport.tls import Credentials
from tests.joining.conftest import MakeJoin
from tests.support.cluster import TABLES as CLUSTER_TABLES
from tests.support.cluster import Laboratory as Cluster
from tests.support.databases import Database, fresh_database
from tests.support.lab import key, same
from tests.support.waiting import until

TABLES = "create table item (id uuid not null, value int, note text)"
KEYS = "alter table item add primary key (id)"
FILL = "insert into item select syncagent.uuid7(), n, 'note' from generate_series(1, 2000) n"


async def test_what_does_not_fit_is_refused(make_join: MakeJoin, server15: Server, server18: Server) -> None:
    async with make_join(TABLES, KEYS, server15, server18) as join:
        (donor,) = join.members
        await donor.do(FILL)
        await join.listen()

        async def refused(prepare: str, undo: str) -> str:
            database = Database(join.server, join.dsn.rpartition("/")[2])
            database.execute(prepare)
            with pytest.raises(RefusedError) as caught:
                await join.copy()
            assert database.execute("select * from syncagent.copy_state") == []
            database.execute(undo)
            return str(caught.value)

        assert "value bigint; only there: value integer" in await refused(
            "alter table item alter value type bigint", "alter table item alter value type int"
        )
        assert "only here: more integer; only there: none" in await refused(
            "alter table item add more int", "alter table item drop more"
        )
        assert "there is no table public.item" in await refused(
            "alter table item rename to other", "alter table other rename to item"
        )
        assert "has rows here already" in await refused(
            f"insert into item values ('{key(1)}')", "truncate item"
        )
        await donor.do(f"delete from syncagent.member where node = {join.node}")
        assert "is not a member here yet" in await refused("select 1", "select 1")
        await donor.do(f"insert into syncagent.member values ({join.node}, 'site{join.node}')")

        assert (await join.copy()).rows == 2000
        await join.conclude()
        await same("item", donor, await join.site())


async def test_a_row_that_arrives_as_another_one_is_noticed(
    make_join: MakeJoin, server15: Server, server18: Server
) -> None:
    flip = """
        create function flip() returns trigger language plpgsql as $$
            begin new.note := 'nota'; return new; end $$;
        create trigger flip before insert on item for each row when (new.value = 1234) execute function flip();
        alter table item enable always trigger flip
    """
    async with make_join(TABLES, KEYS, server15, server18) as join:
        await join.donor.do(FILL)
        await join.listen(range_rows=500)
        database = Database(join.server, join.dsn.rpartition("/")[2])
        database.execute(flip)
        with pytest.raises(CopyDiffers, match=r"public\.item, .* they are not the same"):
            await join.copy(workers=1)
        missing = database.execute("select count(*) from syncagent.copied_range where rows is null")[0][0]
        assert missing >= 1
        assert database.execute("select count(*) from item where value = 1234") == [(0,)]
        database.execute("drop trigger flip on item")

        report = await join.copy()
        assert report.ranges == missing
        assert report.rows + report.rows_kept == 2000
        await join.conclude()
        await same("item", join.donor, await join.site())


async def test_a_donor_that_goes_away_and_comes_back(
    make_join: MakeJoin, server15: Server, server18: Server
) -> None:
    async with make_join(TABLES, KEYS, server18, server15) as join:
        await join.donor.do(FILL)
        await join.listen(range_rows=300)
        port = join.network.port
        left = [3]

        async def vanish(part: Range) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise ConnectionResetError("for the test")

        join.before = vanish
        with pytest.raises(SyncagentError):
            await join.copy(workers=1, patience=0.0)
        asked = len(join.asked)
        await join.network.stop()
        with pytest.raises(LinkDown, match="was interrupted"):
            await join.copy(patience=0.0, port=port)
        assert len(join.asked) == asked

        await join.listen(range_rows=300)
        report = await join.copy()
        assert report.ranges_kept == 2
        assert len(join.asked) == asked + report.ranges
        assert len(set(join.asked)) == report.ranges + report.ranges_kept

        async with join.ends() as (_, copier):  # given up, and begun anew
            await copier.forget()
            assert await copier.unfinished() is None
        seen: list[CopyProgress] = []
        report = await join.copy(seen.append, max_rate=10_000_000)
        assert (report.rows, report.ranges_kept) == (2000, 0)
        assert seen[-1].rows == seen[-1].rows_expected == 2000
        assert seen[-1].ranges == seen[-1].ranges_expected == report.ranges
        assert all(one.rows <= two.rows for one, two in pairwise(seen))
        await join.conclude()
        await same("item", join.donor, await join.site())


# ---- processes


def test_killed_at_either_end(laboratory: Cluster, server15: Server, tmp_path: Path) -> None:
    """The donor is a real agent. The joiner goes on by itself when the donor is killed and started, and is
    killed itself: the next one fetches only what is missing."""
    keys = {"customer": "id", "item": "id", "line": "customer, position"}
    home = tmp_path / "joiner"
    home.mkdir()
    joiner = Credentials.provide(home, "joiner")
    with laboratory.cluster(18, prepare=lambda _: None) as sites, fresh_database(server15) as database:
        (donor,) = sites
        with (donor.home / "config.toml").open("a") as file:
            file.write(f'\n[[peer]]\nname = "joiner"\nnode = 9\nsha256 = "{joiner.sha256}"\n')
        donor.execute(
            "insert into customer select syncagent.uuid7(), md5(random()::text), n, md5(random()::text) from generate_series(1, 40000) n"
        )
        donor.execute(
            "insert into line select id, 1, 1, null from customer limit 30000; insert into item select n, md5(random()::text), n from generate_series(1, 30000) n; analyze"
        )
        donor.start()
        until(lambda: donor.scalar("select count(*) from syncagent.member") == 2, "the joiner is a member")
        prepare(database, keys)
        asked = {
            "dsn": database.dsn,
            "node": 9,
            "donor": donor.node,
            "address": f"127.0.0.1:{donor.port}",
            "sha256": donor.sha256,
            "home": str(home),
        }

        def start(**more: Any) -> "subprocess.Popen[str]":
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.join_process", json.dumps(asked | more)],
                stdout=subprocess.PIPE,
                text=True,
            )

        def done() -> int:
            return int(
                database.execute("select count(rows) from syncagent.copied_range where rows > 0")[0][0]
            )

        first = start(max_rate=700_000)
        until(lambda: done() >= 1, "a range is here")
        donor.kill()
        donor.start()
        kept = done()
        until(lambda: done() > kept, "it goes on by itself")
        first.kill()
        first.communicate()
        total, kept = database.execute("select count(*), count(rows) from syncagent.copied_range")[0]
        assert 0 < kept < total
        second = start()
        said = json.loads(second.communicate(timeout=120)[0])
        assert (said["ranges"], said["ranges_kept"]) == (total - kept, kept)
        for table in keys:
            count = f"select count(*), sum(hashtextextended({table}::text, 0)) from {table}"
            assert database.execute(count) == donor.execute(count)


def prepare(database: Database, keys: dict[str, str]) -> None:
    from tests.support.lab import installation

    database.execute(";".join(installation(())))
    database.execute(
        CLUSTER_TABLES.replace(" primary key,", " not null,").replace(
            ", primary key (customer, position)", ""
        )
    )
    for table, columns in keys.items():
        for column in columns.split(", "):
            database.execute(f"alter table {table} alter {column} set not null")
    database.execute(
        "insert into syncagent.local_site values (true, gen_random_uuid(), 'joiner', 9, gen_random_uuid(), syncagent._tail(9, 1))"
    )

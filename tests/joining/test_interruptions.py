"""A copy that meets what it cannot have, or that is interrupted: refused clearly, or gone on with where it was."""

from itertools import pairwise

import pytest

from syncagent.core.copying import Range
from syncagent.embedded import Server
from syncagent.errors import CopyDiffers, LinkDown, RefusedError, SyncagentError
from syncagent.services.joiner import CopyProgress
from tests.joining.conftest import MakeJoin
from tests.support.databases import Database
from tests.support.lab import key, same

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
        # what is there already is compared, and for that the table must have its key
        assert "has not the primary key" in await refused(
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

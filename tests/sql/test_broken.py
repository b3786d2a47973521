"""Each rule of the SQL side, left out: a test must fail for it.

A rule nobody misses is not held by anything. The changes are made in the text that is installed, and the
test that must fail is one of the directed ones; what they name is what the rule is for.
"""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from syncagent.embedded import Server
from tests.sql import test_apply, test_capture, test_cut
from tests.sql.conftest import Pair, Sites
from tests.support.lab import Change, Laboratory, Site

CUT, APPLY = "40_cut.sql", "50_apply.sql"
RULES: dict[str, tuple[Change, Callable[[Sites, Pair], Awaitable[None]]]] = {
    "a key above its stamp is not implicit": (
        (CUT, "and (f.key < v_least or f.key < syncagent._stamp(f.hlc, p_tail)) ", ""),
        test_capture.test_stamp_of_an_update_is_below_the_time_in_its_own_key,
    ),
    "a key below the collected mark is not implicit": (
        (CUT, " and f.key > p_collected\n", "\n"),
        test_cut.test_insert_below_the_collected_mark_is_not_implicit,
    ),
    "a key that was deleted in the window is not implicit": (
        (CUT, " and not bool_or(e.op = 'D') as born", " as born"),
        test_capture.test_after_delete_trigger_inserts_again,
    ),
    "a transaction has one stamp": (
        (CUT, "max(e.tx_hlc) as hlc", "max(e.hlc) as hlc"),
        test_apply.test_rows_of_a_transaction_win_together,
    ),
    "the fold never lowers a stamp": (
        (CUT, " and syncagent._stamp(f.hlc, p_tail) >= v.stamp;", ";"),
        test_apply.test_winners_are_chosen_per_row_in_one_batch,
    ),
    "a row under a newer tombstone is settled": (
        (CUT, "v.deleted and v.stamp > syncagent._stamp(f.hlc, p_tail)", "false"),
        test_cut.test_open_insert_meets_a_newer_tombstone,
    ),
    "a tombstone waits for the transactions beside it": (
        (CUT, "pg_snapshot_xmax(c.applied) > p_oldest))", "false))"),
        test_cut.test_tombstone_waits_for_transactions_that_ran_when_it_was_applied,
    ),
    "a tombstone below the time in its key is kept": (
        (
            CUT,
            "and v.stamp >= syncagent._implicit(v.key) ",
            "and (v.deleted or v.stamp >= syncagent._implicit(v.key))",
        ),
        test_cut.test_tombstone_below_the_time_in_its_key_is_kept,
    ),
    "applied here is not stable": (
        (CUT, "coalesce((theirs.context ->> o.node::text)::bigint, 0)", "mine.cut"),
        test_cut.test_metadata_goes_once_everybody_has_it,
    ),
    "each row carries its own dot": (
        (CUT, "select v.stamp, v.cut, v.deleted, {v_columns}", "select v.stamp, $2, v.deleted, {v_columns}"),
        test_cut.test_coalesced_batch_keeps_the_dot_of_each_cut,
    ),
    "each row is judged by the context of its own cut": (
        (APPLY, "theirs.cut = m._cut", "theirs.cut = (select max(x._cut) from {stage} x)"),
        test_cut.test_coalesced_batch_keeps_the_context_of_each_cut,
    ),
    "a merge reads the log that is not folded": (
        (APPLY, "left join unfolded u on u.key = s._key", "left join unfolded u on false"),
        test_apply.test_locked_row_refuses_the_batch_at_once,
    ),
    "a few rows that meet an entry are compared": (
        (APPLY, "where v.key is not null or t.ctid is not null)", "where t.ctid is not null)"),
        test_apply.test_conflict_keeps_both_images,
    ),
    "a few rows that meet the log are compared": (
        (
            APPLY,
            "join {stage} s on s._key = k.key\n            where l.relation",
            "join {stage} s on false\n            where l.relation",
        ),
        test_apply.test_locked_row_refuses_the_batch_at_once,
    ),
    "a few rows that meet an insert which their writer had not seen are compared": (
        (
            APPLY,
            "join {stage} s on s._key = k.key where c.relation",
            "join {stage} s on false where c.relation",
        ),
        test_apply.test_insert_that_the_writer_of_a_newer_version_had_not_seen,
    ),
    "an unfolded write that wins leaves a trace": (
        (APPLY, "c.mine > c.incoming and c.settled is null or", ""),
        test_apply.test_unfolded_insert_that_wins_keeps_its_stamp,
    ),
    "one key inserted twice is a conflict": (
        (APPLY, "or (c.twice and c.larger <> 0)", ""),
        test_apply.test_one_key_inserted_twice,
    ),
    "an insert that the writer had not seen is compared": (
        (
            APPLY,
            "when m.settled is null then exists (",
            "when m.settled is null then false and exists (",
        ),
        test_apply.test_insert_that_the_writer_of_a_newer_version_had_not_seen,
    ),
    "an insert that has lost is no birth": (
        (APPLY, "if exists (select from pg_temp.verdict d where d.unborn) then", "if false then"),
        test_apply.test_insert_that_has_lost_is_not_met_again,
    ),
    "what was written while it was merged is found": (
        (APPLY, "        execute format('select syncagent.recheck_%s($1)', v_id) using v_seen;\n", ""),
        test_apply.test_row_written_between_judge_and_write,
    ),
    "a resend skips what was dropped": (
        (CUT, "where k.born = k.cut ", "where true "),
        test_cut.test_resend_skips_what_was_dropped,
    ),
    "a slot with an unfolded entry is kept": (
        (CUT, "    if v_left then\n        return false;\n    end if;\n", ""),
        test_cut.test_slot_of_a_stalled_writer_is_kept,
    ),
}


@pytest.mark.parametrize("rule", RULES)
async def test_rule_left_out_is_noticed(laboratory: Laboratory, pair: Pair, rule: str) -> None:
    change, test = RULES[rule]
    async with AsyncExitStack() as stack:

        async def broken(schema: str, *servers: Server) -> list[Site]:
            return await stack.enter_async_context(laboratory.sites(schema, *servers, changes=(change,)))

        with pytest.raises(AssertionError):
            await test(broken, (pair[0], pair[0]))

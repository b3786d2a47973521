"""`syncagent merge check`: which law a function breaks, on which values."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Site

FUNCTIONS = """
    create table item (id uuid primary key, note text not null, span int4range, at timestamptz, size int);
    insert into item select gen_random_uuid(), 'n' || n, int4range(n, n + 2), '2026-01-01'::timestamptz + n * interval '1 hour', n from generate_series(1, 9) as n;
    create function longest(text, text) returns text language sql immutable strict as
        $$ select case when (length($1), $1 collate "C") > (length($2), $2 collate "C") then $1 else $2 end $$;
    create function joined(text, text) returns text language sql immutable as $$ select $1 || $2 $$;
    create function middle(int, int) returns int language sql immutable as $$ select (($1::bigint + $2) / 2)::int $$;
    create function nothing(text, text) returns text language sql immutable strict as $$ select nullif($1, $2) $$;
    create function raises(text, text) returns text language plpgsql immutable strict as $$ begin if $1 = 'a' then raise exception 'no a'; end if; return 'x'; end $$;
    create function loops(text, text) returns text language plpgsql immutable as $$ begin loop end loop; end $$;
    create function wavers(text, text) returns text language plpgsql immutable as $$ begin return md5(random()::text); end $$;
    create function by_the_day(timestamptz, timestamptz) returns timestamptz language sql immutable strict as $$ select greatest(date_trunc('day', $1), date_trunc('day', $2)) $$;
    create function stable(text, text) returns text language sql stable as $$ select $1 $$;
"""


@pytest.fixture
def filled(site: Site) -> Site:
    site.sql(FUNCTIONS)
    return site


def broken(site: Site, function: str, column: str, *arguments: str, code: int = 1) -> dict[str, str]:
    said = site("merge", "check", function, "--table", "item", "--column", column, "--json", *arguments)
    assert said.code == code, said.err
    return {law["law"]: law["example"] for law in json.loads(said.out)["laws"] if not law["holds"]}


def test_a_function_that_keeps_all_laws(filled: Site) -> None:
    assert broken(filled, "public.longest", "note", code=0) == {}
    assert broken(filled, "pg_catalog.range_merge", "span", code=0) == {}


def test_each_law_with_its_smallest_example(filled: Site, tmp_path: Path) -> None:
    joined = broken(filled, "public.joined", "note")
    assert joined["commutative"] == "f('A', 'a') = 'Aa'; but f('a', 'A') = 'aA'"
    assert joined["idempotent"] == "f('A', 'A') = 'AA'"
    middle = broken(filled, "public.middle", "size")
    assert middle.keys() == {"associative"}
    assert "; but " in middle["associative"]
    assert broken(filled, "public.nothing", "note").keys() >= {"makes a value of values", "idempotent"}
    assert broken(filled, "public.raises", "note") == {"answers": "f('a', '') = 'no a'"}
    assert (
        "it was stopped: it took longer than 100ms"
        in broken(filled, "public.loops", "note", "--timeout", "100ms")["answers"]
    )
    assert "the same each time" in broken(filled, "public.wavers", "note")
    assert "the same each time" in broken(filled, "public.by_the_day", "at"), (
        "another session has another day"
    )
    samples = tmp_path / "samples"
    samples.write_text("x\nyy\n\\N\n")
    said = filled("merge", "check", "public.joined", "--samples", str(samples))
    assert said.code == 1
    assert "idempotent" in said.out
    assert "f('x', 'x') = 'xx'" in said.out


def test_what_it_cannot_be_asked_is_said(filled: Site) -> None:
    said = filled("merge", "check", "public.stable", "--table", "item", "--column", "note")
    assert (said.code, "not declared immutable" in said.err) == (1, True)
    said = filled("merge", "check", "public.longest", "--table", "item", "--column", "size")
    assert "there is no function public.longest(integer, integer)" in said.err
    said = filled("merge", "check", "public.longest")
    assert (said.code, "hint: --table TABLE" in said.err) == (2, True)

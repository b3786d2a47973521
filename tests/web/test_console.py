"""The console: what it refuses, and what a person sees and does in a real browser.

CONSOLE_PICTURES=1 writes the pictures of docs/images/.
"""

import gzip
import http.client
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from playwright.sync_api import Page, expect

from syncagent.core.batch import Table
from syncagent.core.copying import CopiedTable, CopyPlan, Range
from syncagent.core.handout import Handout
from syncagent.embedded import Server, free_port
from syncagent.web import pages, signing
from syncagent.web.actions import ACTIONS
from syncagent.web.api import ROOT
from syncagent.web.findings import findings
from syncagent.web.live import LISTENERS
from tests.support.browser import CHROMIUM, browsing
from tests.support.fleet import Member, fleet
from tests.support.waiting import until

PICTURES = Path(__file__).parents[2] / "docs" / "images"
LIMIT = 200_000
SCHEMA = "create table note (id uuid primary key, author text, body text, stars integer)"


READ = """
- link "Skip to the state"
- banner:
  - navigation "Parts of this page"
- main:
  - region "All is well":
    - heading "All is well" [level=1]
    - paragraph: 2 sites, 1 table
  - status: All is well
  - region "Sites":
    - heading /Sites/ [level=2]
    - img /The sites and their links. berlin. running, tokyo. linked/
    - table "What each site lacks and has":
      - rowgroup:
        - row:
          - columnheader "site"
          - columnheader "state"
      - rowgroup:
        - row:
          - rowheader "berlin"
          - cell "running"
        - row:
          - rowheader "tokyo"
          - cell "linked"
  - region "Activity"
  - region "Conflicts":
    - group "Which conflicts":
      - button "All" [pressed]
      - button "Open"
  - region "Tables":
    - table "Attached tables"
    - application /public.note. 31 rows in sealed buckets/
  - region "Schema changes"
  - region "Parked rows"
"""
"""What a screen reader has of the page when all is well."""
SETTLED = """
- listitem:
  - button /public.note .* update.update berlin over tokyo by rule/ [expanded]
  - table /Both versions of public.note/:
    - rowgroup:
      - row:
        - columnheader "column"
        - columnheader /berlin won/
        - columnheader /tokyo lost/
    - rowgroup:
      - row:
        - rowheader /body ≠/
  - paragraph:
    - button /Keep berlin.s/
    - button /Take tokyo.s/
  - group:
    - form /Values of public.note/:
      - textbox "body"
      - checkbox "body is null"
      - textbox "stars"
      - checkbox "stars is null" [checked]
      - paragraph:
        - button "Write what I changed"
"""
"""A conflict that is unfolded, and other values for it."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


def ask(at: str, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """`headers` with _ for -."""
    connection = http.client.HTTPConnection(at, timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), sent)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


@contextmanager
def serving(folder: Path, *servers: Server) -> Iterator[tuple[str, list[Member]]]:
    """A fleet with a table; the first site's agent serves a console."""
    address = f"127.0.0.1:{free_port()}"
    with fleet(folder, SCHEMA, *servers) as sites:
        first = sites[0]
        first.init()
        first.environment["SYNCAGENT_RUN_HTTP"] = address
        first.start()
        first.environment.clear()  # the verbs need no interpreter of their own
        until(lambda: ask(address, "GET", "/healthz").status == 200, "it answers")
        yield address, sites


def test_nobody_changes_anything_from_elsewhere(tmp_path: Path, server18: Server) -> None:
    with serving(tmp_path, server18) as (at, (site,)):
        own = {"Origin": f"http://{at}", "Content_Type": "application/json"}
        resolution = {"id": "0000", "take": "loser"}
        for action in ACTIONS[2:]:
            refused = ask(at, "POST", ROOT + action.path, resolution, **own)
            assert refused.status == 401
            assert "syncagent console token" in refused.told["hint"]

        token = site.ask("console", "token")["address"].partition("#token=")[2]
        assert token
        assert oct((site.home / "console.token").stat().st_mode)[-3:] == "600"
        assert token not in (site.home / "console.token").read_text()
        for foreign in (
            own | {"Origin": "http://evil.example"},
            own | {"Sec_Fetch_Site": "cross-site"},
            own | {"Sec_Fetch_Site": "same-site"},
            own | {"Content_Type": "text/plain"},
            {"Content_Type": "application/json"},
        ):
            refused = ask(at, "POST", "/api/v1/session", {"token": token}, **foreign)
            assert (refused.status, bool(refused.told["hint"])) == (403, True)
        assert ask(at, "POST", "/api/v1/session", {"token": "x" + token}, **own).status == 401

        signed = ask(at, "POST", "/api/v1/session", {"token": token}, **own)
        assert signed.status == 200
        cookie = signed.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        again = ask(at, "POST", "/api/v1/session", {"token": token}, **own)
        assert (again.status, "set-cookie" in again.headers) == (401, False)
        mine = {"Cookie": cookie.partition(";")[0]}
        assert ask(at, "GET", "/api/v1/session", **mine).told == {"signed_in": True, "rows": True}

        assert ask(at, "POST", "/api/v1/conflict/resolve", resolution, **own, **mine).status == 404
        assert ask(at, "POST", "/api/v1/conflict/resolve", {"id": 1}, **own, **mine).status == 400
        for body in ({"id": "0000"}, resolution | {"value": {"stars": 1}}, {"id": "0000", "value": []}):
            assert ask(at, "POST", "/api/v1/conflict/resolve", body, **own, **mine).status == 400
        assert ask(at, "POST", "/api/v1/parked/retry", {}, **own, **mine).told == {"parked": 0}
        foreign = own | {"Origin": "http://evil.example"}
        assert ask(at, "POST", "/api/v1/conflict/resolve", resolution, **foreign, **mine).status == 403
        assert ask(at, "GET", "/api/v1/conflict/resolve", **mine).status == 405
        assert ask(at, "POST", "/api/v1/session/end", {}, **own, **mine).status == 200
        assert ask(at, "POST", "/api/v1/conflict/resolve", resolution, **own, **mine).status == 401

        log = site.log.read_text()
        assert token not in log
        assert mine["Cookie"].partition("=")[2] not in log


def test_the_page_loads_nothing_from_elsewhere_and_listeners_are_bounded(
    tmp_path: Path, server18: Server
) -> None:
    with serving(tmp_path, server18) as (at, (site,)):
        page = ask(at, "GET", "/", Accept_Encoding="gzip")
        assert gzip.decompress(page.body).startswith(b"<!doctype html>")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        tag = page.headers["etag"]
        assert ask(at, "GET", "/", If_None_Match=tag).status == 304
        foreign = {"Sec_Fetch_Site": "cross-site"}
        assert ask(at, "GET", "/api/v1/events", **foreign, Sec_Fetch_Mode="no-cors").status == 403
        assert ask(at, "GET", "/", **foreign, Sec_Fetch_Mode="navigate").status == 200
        assert ask(at, "GET", "/console/style.css").headers["content-type"] == "text/css; charset=utf-8"
        for path in ("/console/none.js", "/console/..%2Fapi.py", "/console/%2e%2e/api.py"):
            assert ask(at, "GET", path).status == 404

        with ExitStack() as stack:
            streams = []
            for _ in range(LISTENERS):
                connection = stack.enter_context(closing(http.client.HTTPConnection(at, timeout=10)))
                connection.request("GET", "/api/v1/events")
                streams.append(stack.enter_context(connection.getresponse()))
            assert ask(at, "GET", "/api/v1/events").status == 503
            lines = (line for line in iter(streams[0].readline, b"") if line.startswith(b"data: "))
            next(lines)  # what is past
            state = json.loads(next(lines).removeprefix(b"data: "))
            assert (state["database"], state["site"]) == (True, "berlin")
            site.stop()
            for stream in streams:
                stream.read()  # to its end
        assert site.log.read_text().count("Traceback") == 0
        assert not (site.home / "console.address").exists()
        assert "syncagent run" in site.refused("console", "token")


def test_it_is_small_and_has_no_markup_from_text() -> None:
    found = pages.files()
    assert sum(len(file.packed) for file in found.values()) < LIMIT
    for name, file in found.items():
        text = file.plain.decode()
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
        assert not any(word in text for word in ("innerHTML", "outerHTML", "insertAdjacent", "eval("))
        if name.endswith(".html"):
            assert "<style" not in text
            assert "style=" not in text
            assert "onclick" not in text


def test_a_token_is_good_for_minutes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signing.announce(tmp_path, "http://127.0.0.1:1/")
    token = signing.invitation(tmp_path).partition("#token=")[2]
    assert signing._taken(tmp_path, token)
    with monkeypatch.context() as patched:
        patched.setattr(signing, "TOKEN_SECONDS", -1.0)
        late = signing.invitation(tmp_path).partition("#token=")[2]
    assert not signing._taken(tmp_path, late)
    old = signing.invitation(tmp_path).partition("#token=")[2]
    new = signing.invitation(tmp_path).partition("#token=")[2]
    assert not signing._taken(tmp_path, old)
    assert signing._taken(tmp_path, new)
    assert not signing._taken(tmp_path, new)


def test_every_finding_says_who_and_what_to_type() -> None:
    site: dict[str, Any] = {
        "trouble": None,
        "waiting": None,
        "parked": 0,
        "behind_seconds": 0,
        "behind_rows": 0,
        "role": "voter",
        "typed": [],
    }
    me = site | {
        "name": "berlin",
        "is_self": True,
        "state": "running",
        "leads": True,
        "clock_offset_seconds": None,
    }
    peer = site | {
        "name": "tokyo",
        "is_self": False,
        "state": "linked",
        "leads": False,
        "clock_offset_seconds": 0.1,
    }
    well: dict[str, Any] = {
        "sites": [me, peer],
        "unequal": [],
        "schema_changes": [],
        "open_conflicts": 0,
        "member": True,
        "joins": [],
        "unproved": [],
        "tables": [{"name": "note"}, {"name": "tag"}],
    }
    assert not findings(well)

    ill = peer | {"state": "away", "parked": 2, "trouble": "x", "waiting": "y", "clock_offset_seconds": -3.0}
    change = {"name": "add", "failures": {"tokyo": "no right"}}
    found = findings(
        well | {"sites": [me, ill], "unequal": [{"site": "tokyo", "at": "now"}], "schema_changes": [change]}
    )
    assert len(found) == 7
    assert all("tokyo" in one.text and one.type.startswith("syncagent ") for one in found)
    assert [one.level for one in found] == ["bad"] * 4 + ["warn"] * 3
    late = findings(well | {"sites": [me, peer | {"behind_seconds": 90.0, "behind_rows": 1000}]})
    assert [one.text for one in late] == ["tokyo lags"]

    (typed,) = findings(well | {"sites": [me | {"typed": ["note: column size was added"]}, peer]})
    assert (typed.level, typed.type, typed.about) == ("warn", "syncagent schema adopt", "schema")

    for gone in (well | {"member": False}, well | {"sites": [peer]}):
        (one,) = findings(gone)
        assert (one.level, one.text.endswith("is no member"), one.type) == ("bad", True, "syncagent rejoin")
    unproved = [{"table": "note", "sites": ["lima", "tokyo"]}, {"table": "tag", "sites": ["tokyo"]}]
    found = findings(well | {"unproved": unproved})
    assert [(one.text, one.about, one.type) for one in found] == [
        ("note was never found equal with lima", "tables", "syncagent verify"),
        ("tokyo was never found equal", "sites", "syncagent verify"),
    ]
    comes = peer | {"role": "joining", "state": "away"}
    given = {"idle": 1.0}
    assert not findings(well | {"sites": [me, comes], "joins": [{"site": "tokyo", "given": given}]})
    for stalled in (None, {"idle": 90.0}):
        (one,) = findings(well | {"sites": [me, comes], "joins": [{"site": "tokyo", "given": stalled}]})
        assert "syncagent join" in one.type


def test_what_a_joiner_was_given_is_counted_once() -> None:
    table = Table("public", "note")
    parts = tuple(Range(table, number, None, None, None, 100) for number in range(3))
    plan = CopyPlan(1, "UTF8", "1:1:", {}, (CopiedTable(table, ("id",), False, None, (), 300, 9000, parts),))
    handout = Handout()
    assert handout.given(2, 0.0) is None
    handout.planned(2, plan, 10.0)
    for _ in range(2):
        handout.gave(2, parts[1], 90, 12.0)
    assert handout.given(2, 13.0) == (90, 300, 1, 3, 3.0, 1.0)
    handout.gave(2, parts[2], 250, 14.0)
    found = handout.given(2, 14.0)
    assert found is not None
    assert found.rows == found.rows_expected == 340, "an estimate is never below what there is"
    handout.gave(3, parts[0], 7, 14.0)
    assert handout.given(3, 14.0) == (7, None, 1, None, 0.0, 0.0), "its copy was begun before this agent"
    handout.keep({3})
    assert handout.given(2, 14.0) is None


# ---- in a browser


def picture(page: Page, name: str) -> None:
    if os.environ.get("CONSOLE_PICTURES"):
        PICTURES.mkdir(exist_ok=True)
        page.evaluate("() => { document.activeElement.blur(); scrollTo({top: 0, behavior: 'instant'}) }")
        page.evaluate("() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
        page.screenshot(path=PICTURES / f"console-{name}.png", full_page=name != "well")


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium: apt install chromium")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_person_sees_a_site_go_and_settles_a_conflict(
    tmp_path: Path, server18: Server, server15: Server
) -> None:
    with serving(tmp_path, server18, server15) as (at, (berlin, tokyo)):
        berlin.execute(
            "insert into note select syncagent.uuid7_floor(now() - (n * n) * interval '7 minutes'), 'ada', 'note ' || n, n"
            " from generate_series(20, 50) n"
        )
        berlin.ask("attach", "note")
        (key,) = berlin.execute("select id from note order by id desc limit 1")[0]
        change = "update note set body = %s, stars = %s where id = %s"
        with browsing(tmp_path / "browser") as page:
            page.goto(f"http://{at}/")
            headline = page.locator("#headline-text")
            joined_while_looked_at(page, berlin, tokyo)
            expect(headline).to_have_text("All is well", timeout=20_000)
            expect(page.locator("#topology")).to_contain_text("tokyo")
            expect(page.locator("#conflicts-list")).to_contain_text("None yet")
            picture(page, "well")
            expect(page.locator("body")).to_match_aria_snapshot(READ)
            all_have_names(page)

            tokyo.stop()
            expect(headline).to_have_text("Tokyo is away", timeout=20_000)
            expect(page.locator("#findings code").first).to_contain_text("syncagent run")
            expect(page.get_by_role("status").filter(has_text="Tokyo is away")).to_have_count(
                1
            )  # it is read out
            page.get_by_role("link", name="tokyo is away").click()
            expect(page.locator("#sites")).to_be_focused()
            tokyo.execute(change, ("<img src=x onerror=alert(1)>", 5, key))
            berlin.execute(change, ("from berlin", 4, key))
            expect(page.locator("#sites-table")).to_contain_text("1 row", timeout=20_000)
            tokyo.start()

            row = page.locator("#conflicts-list button.row")
            expect(row).to_contain_text("update/update", timeout=20_000)
            expect(headline).to_have_text("All is well", timeout=20_000)
            row.focus()
            page.keyboard.press("Enter")
            expect(page.locator(".detail tr.differs")).to_have_count(2)
            expect(page.locator(".detail")).to_contain_text("<img src=x onerror=alert(1)>")
            expect(page.locator(".detail")).to_contain_text("syncagent console token")

            page.goto(berlin.ask("console", "token")["address"])
            expect(page.locator("#session")).to_have_text("signed in")
            expect(page).to_have_url(f"http://{at}/")
            (loser,) = berlin.execute("select loser from syncagent.conflict")[0]
            lost = {"berlin": "from berlin", "tokyo": "<img src=x onerror=alert(1)>"}[loser]
            body = "select body from note where id = %s"
            page.locator('[data-take="loser"]').click()
            expect(row).to_contain_text("resolved")
            expect(row).to_be_focused()
            until(lambda: tokyo.scalar(body, (key,)) == lost, "the resolution is at both sites")
            page.locator("#tables-list button").focus()
            expect(page.locator("#forest svg")).to_be_visible()
            page.locator("#forest svg").focus()
            page.keyboard.press("ArrowUp")
            expect(page.locator("#forest .cell.chosen")).to_have_count(1)
            if os.environ.get("CONSOLE_PICTURES"):
                for name, scheme, width in (
                    ("dark", "dark", 1280),
                    ("phone", "dark", 390),
                ):
                    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
                    page.set_viewport_size({"width": width, "height": 800})
                    picture(page, name)
            page.locator("[data-undo]").click()
            until(lambda: berlin.scalar(body, (key,)) != lost, "it is undone")
            expect(row).to_contain_text("by rule")

            page.locator(".values summary").click()
            page.get_by_label("body", exact=True).fill('{"not": "json", it is text}')
            page.get_by_label("stars is null").check()
            expect(page.locator("#conflicts-list")).to_match_aria_snapshot(SETTLED)
            all_have_names(page)
            page.get_by_role("button", name="Write what I changed").click()
            expect(page.locator("#conflicts-said")).to_contain_text("has these values, at every site")
            written = "select body, stars, author from note where id = %s"
            expected = [('{"not": "json", it is text}', None, "ada")]
            until(lambda: tokyo.execute(written, (key,)) == expected, "the values are at both sites")

            gives_up_a_parked_row(page, berlin, tokyo)
            takes_a_merge_back(page, berlin, tokyo)


def all_have_names(page: Page) -> None:
    """What can be used, or jumped to, is called something by a screen reader; and what says what was done is read out."""
    told = page.locator("body").aria_snapshot()
    roles = "application|button|checkbox|dialog|figure|form|heading|img|link|navigation|progressbar|region|table|textbox"
    assert not re.findall(rf"^ *- '?(?:{roles})(?:$|:| \[).*", told, re.MULTILINE)
    live = page.locator("[role=status], output").evaluate_all(
        "found => found.map(one => one.id || one.tagName)"
    )
    assert {"spoken", "session", "conflicts-said", "parked-said"} <= set(live)


def joined_while_looked_at(page: Page, berlin: Member, tokyo: Member) -> None:
    """Somebody keeps its table from being written, so it does not end for as long as it is looked at."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(tokyo.database.dsn) as busy:
        busy.execute("lock table note in share row exclusive mode")
        joining = pool.submit(tokyo.join, berlin)
        try:
            expect(page.locator("#joins")).to_contain_text(
                "tokyo joins: its 31 rows are copied", timeout=20_000
            )
            bar = page.get_by_role("progressbar", name="Copy of the rows to tokyo")
            expect(bar).to_have_attribute("value", "1")
            expect(page.locator("#sites-table")).to_contain_text("joins")
            expect(page.locator("#headline-text")).to_have_text("All is well")
            given = {
                "rows": 400,
                "rows_expected": 1000,
                "ranges": 2,
                "ranges_expected": 5,
                "seconds": 10.0,
                "idle": 0.1,
            }
            said = page.evaluate(
                "async (given) => { (await import('/console/joins.js')).joins([{ site: 'tokyo', given }]);"
                " return [document.querySelector('#joins p').textContent, document.querySelector('#joins progress').value] }",
                given,
            )
            assert said == [
                "tokyo joins: 400 of about 1,000 rows copied from here, 40 in a second, 15 s to go.",
                0.4,
            ]
        finally:
            busy.rollback()
        joining.result(60)
    expect(page.locator("#joins")).to_be_empty()
    tokyo.start()


def gives_up_a_parked_row(page: Page, berlin: Member, tokyo: Member) -> None:
    """It is tried again, nothing happens at a no, and a yes gives it up at both sites."""
    berlin.execute("alter table note add constraint few check (stars < 100)")
    tokyo.execute("insert into note values (syncagent.uuid7(), 'ada', 'too many', 100)")
    parked = page.locator("#parked-list")
    expect(parked).to_contain_text("few", timeout=20_000)
    page.get_by_role("button", name="Try all of them now").click()
    expect(page.locator("#parked-said")).to_have_text("They were tried: 1 row still parked.")
    give_up = page.get_by_role("button", name="Give it up: public.note")
    give_up.click()
    asked = page.get_by_role("dialog", name="Give up what tokyo wrote")
    expect(asked.get_by_role("button", name="Let it wait")).to_be_focused()
    expect(page.get_by_role("link", name="Parked: 1")).to_be_visible()
    all_have_names(page)
    expect(asked).to_contain_text("at every site?")
    page.keyboard.press("Escape")
    expect(asked).to_have_count(0)
    expect(give_up).to_be_focused()
    assert berlin.scalar("select count(*) from syncagent.parked") == 1
    give_up.click()
    asked.get_by_role("button", name="Give it up").click()
    expect(page.locator("#parked-said")).to_contain_text("given up, and kept as a conflict")
    expect(parked).to_contain_text("None")
    expect(page.get_by_role("button", name="Try all of them now")).to_be_hidden()
    gone = "select count(*) from note where body = 'too many'"
    until(lambda: tokyo.scalar(gone) == 0, "it is given up where it was written, too")
    expect(page.locator("#conflicts-list")).to_contain_text("parked")


MERGED = """
- paragraph: /merged into 01900000-0000-7000-8000-000000000001, which has its value of label_name_key/
- table /Both rows of public.label/:
  - rowgroup:
    - row:
      - columnheader "column"
      - columnheader /row .*1, of berlin/
      - columnheader /row .*2, of tokyo, merged into it/
- paragraph:
  - button "Both rows again"
- group:
  - form /Values of public.label/:
    - textbox "name"
    - checkbox "name is null"
"""


def takes_a_merge_back(page: Page, berlin: Member, tokyo: Member) -> None:
    """Of two rows that have become one there is nothing to take: they are two again, one again, or two with other values."""
    for site in (berlin, tokyo):
        site.execute("create table label (id uuid primary key, name text unique)")
    berlin.ask("attach", "label", "--on-unique", "label_name_key=merge")
    label = "insert into label values ('01900000-0000-7000-8000-00000000000{}', 'red')"
    with psycopg.connect(tokyo.database.dsn) as held:
        held.execute(label.format(2).encode())
        berlin.execute(label.format(1))
    names = "select coalesce(name, '-') from label order by id"

    def have(*expected: str) -> None:
        for site in (berlin, tokyo):
            until(lambda site=site: [row[0] for row in site.execute(names)] == [*expected], f"{expected}")  # type: ignore[misc]

    have("red")
    row = page.locator("#conflicts-list button.row").filter(has_text="public.label")
    expect(row).to_contain_text("merged", timeout=20_000)
    row.click()
    detail = page.locator(".detail")
    expect(detail.locator("[data-take]")).to_have_count(0)
    detail.locator(".values summary").click()
    expect(detail).to_match_aria_snapshot(MERGED)
    all_have_names(page)
    detail.get_by_role("button", name="Both rows again").click()
    expect(row).to_contain_text("resolved")
    have("red", "-")
    expect(detail.locator(".values")).to_have_count(0)
    detail.get_by_role("button", name="Merge them again").click()
    expect(row).to_contain_text("merged")
    have("red")
    detail.locator(".values summary").click()
    detail.get_by_label("name", exact=True).fill("blue")
    detail.get_by_role("button", name="Write what I changed").click()
    have("red", "blue")
    shows_what_cannot_follow(page)


def shows_what_cannot_follow(page: Page) -> None:
    """There is one version of it: nothing to take, and values to give."""
    now, image = "2026-01-01T00:00:00Z", {"id": "7", "label": "2"}
    conflict: dict[str, Any] = {
        **dict.fromkeys(("loser", "winning_image", "other_key", "yielded", "resolved_at", "resolved_by")),
        "id": "0",
        "table_name": "public.tagged",
        "key": "7",
        "kind": "foreign key",
        "strategy": "merge",
        "winner": "berlin",
        "losing_image": image,
        "constraint_name": "tagged_label_fkey",
        "open": False,
        **dict.fromkeys(("noticed_at", "winning_time", "losing_time"), now),
    }
    found = {"count": 1, "conflicts": [conflict]}
    page.route("**/api/v1/conflicts?*", lambda route: route.fulfill(json=found))
    page.get_by_role("button", name="Open", exact=True).click()
    page.locator("#conflicts-list button.row").filter(has_text="public.tagged").click()
    detail = page.locator(".detail")
    expect(detail).to_contain_text("kept it from following the row")
    expect(detail.get_by_role("table", name="The row public.tagged 7")).to_be_visible()
    detail.locator(".values summary").click()
    expect(detail.get_by_label("label", exact=True)).to_have_value("2")
    expect(detail.locator("[data-take], [data-undo]")).to_have_count(0)
    all_have_names(page)

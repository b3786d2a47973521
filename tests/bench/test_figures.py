"""What is made of the lines of a benchmark: laws, pictures, tables. The benchmarks themselves are programs, and are not run here."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import catalogue, costs, packages, pages, plot
from bench.lab import Lab
from syncagent.errors import UsageError

Line = dict[str, Any]


def sized(name: str, size: int, ours: float, **env: Any) -> Line:
    spread = {"ours": [ours * 0.9, ours * 1.1]}
    about = {"axis": "rows", "size": size, "postgresql": "18.6", "date": "2026-11-28T10:00:00", **env}
    return {"name": name, "peer": None, "unit": "us/row", "ours": ours, "spread": spread, "env": about}


def drawn(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314  (we have just made it)


def ratio(name: str, peer: str, ours: float, theirs: float, better: float, postgresql: str = "18.6") -> Line:
    return {
        "name": name, "peer": peer, "unit": "rows/s", "ours": ours, "theirs": theirs, "ratio": better, "limit": None, "runs": 3,
        "spread": {"ours": [ours / 2, ours * 2], "theirs": [theirs, theirs]}, "env": {"postgresql": postgresql},
    }  # fmt: skip


# ---- the model of the costs


def test_a_law_is_found_again_in_what_follows_it(seed: int) -> None:
    chance = random.Random(seed)
    fixed, each = chance.uniform(0.1, 100), chance.uniform(0.1, 100)
    found = costs.law([(x, fixed + each * x) for x in (1, 3, 7, 1000)])
    assert found is not None
    assert found.at(300) == pytest.approx(fixed + each * 300), seed
    assert found.off == pytest.approx(0, abs=1e-9)


def test_a_law_says_how_far_it_is_off_and_never_falls_below_nothing() -> None:
    falling = costs.law([(2, 12.0), (4, 10.0), (8, 7.0)])
    assert falling is not None
    assert falling.each == 0  # more sites do not cost less: they were slowed down by something else
    assert 0.2 < falling.off < 1
    steep = costs.law([(1, 1.0), (10, 20.0)])  # the straight line through both begins below zero
    assert steep is not None
    assert steep.fixed == 0
    assert steep.at(0.5) > 0
    assert costs.law([(1, 1.0), (1, 2.0)]) is None


def test_what_was_measured_on_one_machine_is_said_of_many() -> None:
    lines = [
        *(sized("scaling-backlog", n, 20, wall=1 + n / 100_000, agent_mb=90) for n in (10_000, 1_000_000)),
        *(sized("scaling-rows", n, digits * 5.0) for digits, n in ((4, 10_000), (6, 1_000_000))),
        *(sized("scaling-tables", n, 20, rest_percent={"server": 1 + n / 50}) for n in (1, 100)),
        {
            "name": "sites-calm-mesh",
            "env": {"by_sites": {"2": {"first": 3.0}, "4": {"first": 5.0}, "8": {"first": 9.0}}},
        },
    ]
    lines.append(
        {"name": "sites-calm-hub", "env": {"by_sites": {n: {"first": 9.0 - n, "others": 1} for n in (2, 8)}}}
    )
    said = {(found.what, found.at): found.predicted for found in costs.statements(lines)}
    assert said["the agent of a site in a mesh, sites", "100"] == pytest.approx(2 + 99)
    assert said["a backlog gets to the other site, rows", "1,000,000,000"] == pytest.approx(10_001)
    assert said["an update in a table, rows", "1,000,000,000"] == pytest.approx(45)
    assert said["a server at rest, attached tables", "1,000"] == pytest.approx(21)
    assert not [
        what for what, _ in said if "hub" in what or "messages" in what
    ]  # nothing was measured of them


# ---- what is kept, and shown


def test_a_newer_line_takes_the_place_of_the_same_and_of_no_other() -> None:
    old = ratio("drain-insert-txn", "native", 1, 2, 0.5)
    new = ratio("drain-insert-txn", "native", 3, 2, 1.5)
    others = [
        ratio("drain-insert-txn", "COPY", 1, 9, 0.1),
        ratio("drain-insert-txn", "native", 1, 1, 1, postgresql="15.20"),
    ]
    sizes = [sized("scaling-rows", size, 5) for size in (10, 100)]
    new["env"]["settings"] = {"a folder": "of this machine"}
    found = pages.merged([old, *others, *sizes], [new])
    assert [line["ours"] for line in found] == [3, 1, 1, 5, 5]
    assert "settings" not in found[0]["env"]


def test_a_small_run_does_not_take_the_place_of_a_full_one() -> None:
    full, small = ratio("drain", "native", 1, 2, 0.5), ratio("drain", "native", 3, 2, 1.5)
    small["env"]["scale"] = 0.02
    assert pages.merged([full], [small]) == [full]
    assert pages.merged([small], [full]) == [full]
    assert not pages.pictures([small])  # it is no figure to go by


def test_pictures_are_drawn_of_what_there_is() -> None:
    lines = [
        ratio("drain", "native", 200, 100, 2.0),
        ratio("cost", "native", 200, 100, 0.5),
        ratio("cost", "native", 100, 100, 1.0, "15.18"),
        *(sized("scaling-rows", size, 5 + size / 1000) for size in (100, 10_000)),
    ]
    found = pages.pictures(lines)
    assert set(found) == {"bench-ratios", "scaling-rows"}
    seen = {name: drawn(text) for name, text in found.items()}
    words = [element.text for element in seen["bench-ratios"].iter() if element.tag.endswith("text")]
    assert {"drain / native, 18", "cost / native, 18", "cost / native, 15"} <= set(words)
    bars = [element for element in seen["bench-ratios"].iter() if element.tag.endswith("rect")][1:]
    middle = next(
        float(line.get("x1", 0))
        for line in seen["bench-ratios"].iter()
        if line.tag.endswith("line") and line.get("stroke") == "#333333"
    )
    better, worse, _ = bars
    assert float(better.get("x", 0)) == pytest.approx(middle, abs=0.1)
    assert float(worse.get("x", 0)) + float(worse.get("width", 0)) == pytest.approx(middle, abs=0.1)
    points = [element for element in seen["scaling-rows"].iter() if element.tag.endswith("circle")]
    heights = [float(point.get("cy", 0)) for point in points]
    assert len(heights) == 2
    assert heights[0] > heights[1]  # more is further up


def test_a_curve_of_one_size_can_be_drawn() -> None:
    assert drawn(plot.curves("one", "x", "y", {"one": [plot.Point(10, 5, 5, 5)]})).tag


def test_a_peer_that_is_not_there_is_a_row_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        packages.BUCARDO.root(tmp_path)
    assert "make bench-peers" in str(caught.value.hint)
    line = ratio("drain", "bucardo", 1, 1, 1)
    gone = {**line, "ours": None, "theirs": None, "ratio": None, "spread": {}}
    gone["env"] = {"missing": "bucardo is not installed"}
    table = pages.tables([gone])["peers"]
    assert "bucardo: bucardo is not installed" in table
    assert "bench-peers" not in pages.pictures([gone])


def test_peers_that_are_not_there_are_told_one_by_one(tmp_path: Path) -> None:
    a = SimpleNamespace(binaries=SimpleNamespace(version="18.6"))
    lab = Lab(SimpleNamespace(a=a, settings={}, seeds=1), 1, 1.0, print, tmp_path)  # type: ignore[arg-type]
    lines = list(catalogue.BENCHMARKS["peers"].measure(lab, "peers"))
    assert [line.peer for line in lines] == ["pglogical", "bucardo", "londiste"]
    for line in lines:
        assert line.ours is None
        assert f"{line.peer} is not installed" in line.env["missing"]
        assert "apt install postgresql-15 " in line.env["missing"]


def test_what_was_asked_and_what_costs_beside_stand_in_the_table() -> None:
    line = ratio("drain-update-txn", "native", 90_000, 60_000, 1.5)
    costs = {"syncagent": {"origin": 2.5, "receiver": 1.0}, "native": {"origin": 3.0, "receiver": 4.0}}
    line["env"] = {**line["env"], "cpu_us_per_row": costs}
    peer = ratio("capture-insert-txn", "londiste", 4, 2, 0.5)
    peer["env"] = {**peer["env"], "none": 1.0, "afterwards": {"syncagent": 0.25, "londiste": 0.0}}
    found = pages.tables([line, peer])
    assert "| native | 1.5 | 2.5 | 3.5 to 7 us of processors a row |" in found["ratios"]
    assert "| londiste | 0.5 |  | against none 0.25, theirs 0.50; 0.25 s more afterwards |" in found["peers"]


def test_only_what_is_between_the_marks_is_written_anew() -> None:
    page = "before\n<!-- peers -->\nold\n<!-- end of peers -->\nafter <!-- other -->kept<!-- end of other -->"
    once = pages.filled(page, {"peers": "new"})
    assert once == page.replace("old", "new")
    assert pages.filled(once, {"peers": "new"}) == once


def test_pages_show_the_lines_that_are_kept() -> None:
    """Pictures and tables of the documentation are those of docs/proof/bench.jsonl."""
    lines = pages.read(pages.ROOT / pages.KEPT)
    remedy = "if that is meant: python -m bench.pages"
    for name in ("benchmarks.md", "scaling.md"):
        text = (pages.ROOT / "docs" / name).read_text()
        assert pages.filled(text, pages.blocks(lines)) == text, remedy
    for name, picture in pages.pictures(lines).items():
        assert (pages.ROOT / "docs" / "images" / f"{name}.svg").read_text() == picture, remedy
    assert not [line for line in lines if "/" in json.dumps(line["env"]).replace("us/row", "")], (
        "a place of a machine"
    )


def test_what_runs_if_none_is_named_is_there() -> None:
    assert {"drain-insert-txn", "capture-update-bulk", "lag", "rest"} <= {
        name for name, benchmark in catalogue.BENCHMARKS.items() if not benchmark.by_name
    }

"""What lies in `deploy/monitoring/`: a real Prometheus scrapes three agents as its example says, and has an answer to every panel."""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncagent.embedded import Server, free_port
from tests.support.fleet import Member, fleet
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
RULES = FOLDER / "syncagent.rules.yml"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "syncagent-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed: apt install prometheus",
)


# ---- as files


def test_what_is_asked_for_is_measured() -> None:
    """A metric that no agent has would be an empty panel, or an alert that never fires."""
    measured = set(re.findall(r"^\| `(syncagent_\w+)`", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    for query in (*QUERIES, *(alert["expr"] for alert in ALERTS)):
        asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"syncagent_\w+", query)}
        assert asked <= measured, query


def test_every_alert_has_a_runbook_a_command_and_a_test() -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "docs/runbooks.md").read_text(), re.MULTILINE)
    anchors = {f"docs/runbooks.md#{title.lower().replace(' ', '-')}" for title in titles}
    tested = (FOLDER / "syncagent.rules.test.yml").read_text()
    page = (ROOT / "docs/monitoring.md").read_text()
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] in anchors
        assert re.search(r"type[^:]*: [a-z]+", alert["annotations"]["summary"]), alert["alert"]
        assert re.search(rf"alertname: {alert['alert']}\n +exp_alerts:\n", tested), alert["alert"]
        assert f"`{alert['alert']}`" in page


def test_panels_lie_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    for one, other in combinations(places, 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]


@needs_prometheus
@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "syncagent.rules.yml"),
        ("check", "config", "--syntax-only", "prometheus.yml"),
        ("test", "rules", "syncagent.rules.test.yml"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_promtool_finds_nothing(words: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- as it runs


class Prometheus:
    """One that scrapes every second."""

    def __init__(self, port: int) -> None:
        self._base, self._began = f"http://127.0.0.1:{port}", time.time()

    def ask(self, path: str, **parameters: str | float) -> Any:
        address = f"{self._base}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 (an address of the test's own)
            return json.load(answer)["data"]

    def answers(self, query: str) -> bool:
        """Whether there is a number in it since the beginning. Variables of the dashboard are everything, as Grafana has them."""
        for variable, value in (("$__rate_interval", "5s"), ("$site", ".*"), ("$peer", ".*")):
            query = query.replace(variable, value)
        found = self.ask("query_range", query=query, start=self._began, end=time.time(), step=1)["result"]
        return any(math.isfinite(float(value)) for series in found for _, value in series["values"])

    def value(self, query: str) -> float:
        return sum(float(series["value"][1]) for series in self.ask("query", query=query)["result"])

    def alerts(self, *states: str) -> set[tuple[str, ...]]:
        """Name, site and peer of those that are firing, or pending: they will fire if it stays so."""
        keys = ("alertname", "site", "peer")
        found = [alert["labels"] for alert in self.ask("alerts")["alerts"] if alert["state"] in states]
        return {tuple(labels[key] for key in keys if key in labels) for labels in found}


@contextmanager
def prometheus(folder: Path, served: dict[str, int]) -> Iterator[Prometheus]:
    """As the example says, but for names of hosts and files, and the seconds. `served`: ports of the sites."""
    text = (FOLDER / "prometheus.yml").read_text()
    for name, port in served.items():
        text = text.replace(f"{name}.example.org:7480", f"127.0.0.1:{port}")
        text = text.replace(f"/etc/prometheus/{name}.pem", str(folder / name / "certificate.pem"))
    text = text.replace("/etc/prometheus/syncagent.rules.yml", str(RULES)).replace(
        "_interval: 15s", "_interval: 1s"
    )
    assert "/etc/" not in text
    assert "example.org" not in text
    (folder / "prometheus.yml").write_text(text)
    checked = subprocess.run(
        ["promtool", "check", "config", folder / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    port, log = free_port(), folder / "prometheus.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=warn"),
                *(f"--storage.tsdb.path={folder / 'series'}", f"--web.listen-address=127.0.0.1:{port}"),
            ],
            stdout=out,
            stderr=out,
        )
    try:
        until(lambda: process.poll() is not None or "Server is Ready" in _said(port), "Prometheus is ready")
        assert process.poll() is None, log.read_text()
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


def _said(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:
            return str(answer.read())
    except OSError:
        return ""


def conflict(one: Member, other: Member) -> None:
    """The same row is written at both before either has what the other wrote."""
    key = one.scalar("insert into t values (syncagent.uuid7(), 'first') returning id")
    read = "select v from t where id = %s"
    until(lambda: other.execute(read, (key,)), "the row is at both")
    one.ask("pause", other.name)
    other.ask("pause", one.name)
    for member in (one, other):
        member.execute("update t set v = %s where id = %s", (member.name, key))
    one.ask("resume", other.name)
    other.ask("resume", one.name)
    until(lambda: one.execute(read, (key,)) == other.execute(read, (key,)), "both have the same")


@needs_prometheus
def test_every_panel_of_the_dashboard_has_an_answer(tmp_path: Path, server18: Server) -> None:
    with fleet(tmp_path, "create table t (id uuid primary key, v text)", *[server18] * 3) as members:
        berlin, tokyo, lima = members
        served = {member.name: free_port() for member in members}
        for member in members:
            berlin.init() if member is berlin else member.join(berlin)
            member.environment["SYNCAGENT_RUN_HTTP"] = f"0.0.0.0:{served[member.name]}"
            member.start()
            member.environment.clear()  # its verbs need no interpreter of their own
        berlin.ask("attach", "t")
        with prometheus(tmp_path, served) as watching:
            until(lambda: watching.value("syncagent_running") == 3, "every agent is scraped")
            conflict(berlin, tokyo)
            left = list(QUERIES)

            def answered() -> bool:
                for member in members:
                    member.execute("insert into t values (syncagent.uuid7(), 'x')")
                left[:] = [query for query in left if not watching.answers(query)]
                return not left

            within(answered, lambda: f"no answer to {left}")
            for variable in DASHBOARD["templating"]["list"][1:]:
                series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
                assert set(watching.ask(f"label/{label}/values", **{"match[]": series})) == set(served)
            assert watching.value("sum(syncagent_conflicts)") >= 1
            assert watching.alerts("firing") == set()

            lima.stop()
            expected = {("SyncagentAgentDown", "lima"), ("SyncagentPeerAway", "berlin", "lima")}
            until(lambda: expected <= watching.alerts("pending"), "its absence is noticed")
            for group in watching.ask("rules")["groups"]:
                assert [rule["health"] for rule in group["rules"]] == ["ok"] * len(ALERTS)


def within(look: Callable[[], bool], what: Callable[[], str]) -> None:
    try:
        until(look, "")
    except AssertionError:
        pytest.fail(what())

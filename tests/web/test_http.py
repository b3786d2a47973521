"""`syncagent run --http`: health, metrics and state of a real agent, and what it refuses."""

import asyncio
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from syncagent.embedded import Server, free_port
from syncagent.settings import Settings
from syncagent.web.actions import ACTIONS
from syncagent.web.api import ANSWERS, EVENTS, ROOT
from syncagent.web.server import Server as HttpServer
from tests.support.fleet import Member, fleet
from tests.support.waiting import until


def get(url: str, host: str | None = None, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})  # noqa: S310 (an address of the test's own)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@contextmanager
def serving(folder: Path, server: Server, address: str) -> Iterator[Member]:
    """Site berlin, alone, with a table, and its agent with --http."""
    with fleet(folder, "create table t (id uuid primary key, v text)", server) as (site,):
        site.init()
        site.environment["SYNCAGENT_RUN_HTTP"] = address
        site.start()
        site.ask("attach", "t")
        yield site


def test_an_agent_is_ready_in_three_seconds(tmp_path: Path, server18: Server) -> None:
    """From its command to /readyz, once of three times: others may be at work on this machine."""
    address = f"127.0.0.1:{free_port()}"
    with fleet(tmp_path, "create table t (id uuid primary key)", server18) as (site,):
        site.init()
        site.environment["SYNCAGENT_RUN_HTTP"] = address

        def took() -> float:
            began = time.monotonic()
            site.start()
            until(lambda: get(f"http://{address}/readyz")[0] == 200, "it is ready")
            after = time.monotonic() - began
            site.stop()
            return after

        assert any(took() < 3 for _ in range(3))


def test_an_agent_tells_how_it_is(tmp_path: Path, server18: Server) -> None:
    address = f"127.0.0.1:{free_port()}"
    base = f"http://{address}"
    with serving(tmp_path, server18, address) as site:
        until(lambda: get(f"{base}/readyz")[0] == 200, "it is ready")
        assert get(f"{base}/healthz")[0] == 200
        site.execute("insert into t values (syncagent.uuid7(), 'x')")

        def families() -> list[Metric]:
            return list(text_string_to_metric_families(get(f"{base}/metrics")[1].decode()))

        def metrics() -> dict[tuple[str, ...], float]:
            return {
                (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("site", "le"))): s.value
                for family in families()
                for s in family.samples
            }

        until(lambda: metrics().get(("syncagent_cut_rows_total",)) == 1.0, "the row is in a cut")
        found = metrics()
        assert found["syncagent_database_up",] == found["syncagent_running",] == 1
        assert found["syncagent_raft_role", "leader"] == found["syncagent_leader_known",] == 1
        assert found["syncagent_parked_rows", "berlin"] == 0
        told = {
            (family.name + "_total" * (family.type == "counter"), family.documentation)
            for family in families()
            if family.name.startswith("syncagent_")
        }
        page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
        assert told == set(re.findall(r"^\| `(syncagent_\w+)` \| (.*) \|$", page, re.MULTILINE))

        described: dict[str, Any] = json.loads(get(f"{base}{ROOT}/openapi.json")[1])
        assert set(described["paths"]) == {ROOT + one.path for one in (*ANSWERS, *ACTIONS)} | {ROOT + EVENTS}
        wanted = {
            "/forest": "?table=t",
            "/conflict": "?id=0000",
            "/why": "?table=t&key=01900000-0000-7000-8000-000000000001",
        }
        for answer in ANSWERS:
            status, body = get(base + ROOT + answer.path + wanted.get(answer.path, ""))
            assert status == (404 if answer.path == "/conflict" else 200), body
        (me,) = json.loads(get(f"{base}{ROOT}/status")[1])
        assert (me["name"], me["state"]) == ("berlin", "running")

        error = described["components"]["schemas"]["Error"]
        for path, status in (("/conflicts?limit=0", 400), ("/status?x=1", 400), ("/nothing", 404)):
            code, body = get(base + ROOT + path)
            assert code == status
            jsonschema.validate(json.loads(body), error)
        assert get(f"{base}{ROOT}/status", host="evil.example")[0] == 400
        assert get(f"{base}{ROOT}/status", host="127.evil.example")[0] == 400
        assert get(f"{base}{ROOT}/status", host="localhost:7480")[0] == 200
        assert site.log.read_text().count("Traceback") == 0


def test_a_network_address_is_served_with_the_sites_certificate_and_without_rows(
    tmp_path: Path, server18: Server
) -> None:
    port = free_port()
    with serving(tmp_path, server18, f"0.0.0.0:{port}") as site:
        context = ssl.create_default_context(cafile=str(site.home / "certificate.pem"))
        context.check_hostname = False
        base = f"https://127.0.0.1:{port}"
        until(lambda: get(f"{base}/readyz", context=context)[0] == 200, "it is ready")
        assert get(f"{base}{ROOT}/status", context=context)[0] == 200
        code, body = get(f"{base}{ROOT}/conflicts", context=context)
        assert code == 403
        assert b"hint" in body

        _, _, token = site.ask("console", "token")["address"].partition("#token=")
        headers = {"Content-Type": "application/json", "Origin": base}
        asked = urllib.request.Request(  # noqa: S310
            f"{base}{ROOT}/session", json.dumps({"token": token}).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(asked, timeout=10, context=context) as answer:  # noqa: S310
            cookie = answer.headers["Set-Cookie"]
        assert cookie.startswith("__Host-")
        assert "Secure" in cookie.split("; ")
        asked = urllib.request.Request(  # noqa: S310
            f"{base}{ROOT}/conflicts", headers={"Cookie": cookie.partition(";")[0]}
        )
        with urllib.request.urlopen(asked, timeout=10, context=context) as answer:  # noqa: S310
            assert answer.status == 200
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            get(f"http://127.0.0.1:{port}/healthz")


def test_an_address_that_is_taken_stops_the_agent_with_a_hint(tmp_path: Path, server18: Server) -> None:
    with fleet(tmp_path, "", server18) as (site,), socket.create_server(("127.0.0.1", 0)) as taken:
        site.init()
        said = site.verb("run", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
        assert said.returncode == 2
        assert "cannot listen" in said.stderr
        assert "--http" in said.stderr


async def test_a_site_that_is_no_member_is_not_ready(tmp_path: Path) -> None:
    """As its agent says while it joins, and after it was removed."""
    address = f"127.0.0.1:{free_port()}"
    settings = Settings(
        home=tmp_path, name="berlin", node=1, site=uuid4(), incarnation=uuid4(), dsn="", listen="none"
    )
    server = HttpServer(settings, address)
    await server.start()

    async def ready() -> tuple[int, str | None]:
        status, body = await asyncio.to_thread(get, f"http://{address}/readyz")
        return status, json.loads(body)["reason"]

    try:
        assert await ready() == (503, "the agent has no database, or is starting")
        server.window.standing = lambda: ("follower", 1)
        assert await ready() == (503, "this site is no member: it still joins, or was removed")
        server.window.is_member = lambda: True
        assert await ready() == (200, None)
    finally:
        await server.stop()

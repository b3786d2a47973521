"""The table of `/api/v1` in `docs/metrics.md`, which is what the agent's `openapi.json` says:

    python -m tests.support.http_page

writes it anew; a test says when it is not current.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from syncagent.web import api

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BETWEEN = re.compile(r"(?<=<!-- paths -->\n).*?(?=<!-- end -->)", re.DOTALL)


def table() -> str:
    rows = "".join(f"| `{what}` | {summary} | {asked} |\n" for what, summary, asked in _told(api.openapi()))
    return f"| | | asks for |\n|---|---|---|\n{rows}"


def _told(described: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    bodies = described["components"]["schemas"]
    for path, methods in described["paths"].items():
        for method, one in methods.items():
            asked = {parameter["name"]: parameter["description"] for parameter in one.get("parameters", ())}
            if "requestBody" in one:
                body = one["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                asked = dict.fromkeys(bodies[body].get("properties", ()), "")
            listed = ", ".join(f"`{name}`" + f" ({what})" * bool(what) for name, what in asked.items())
            yield f"{method.upper()} {path}", one["summary"], listed


def shown() -> str:
    """What stands in the page."""
    found = _BETWEEN.search(PAGE.read_text())
    assert found is not None
    return found[0]


if __name__ == "__main__":
    PAGE.write_text(_BETWEEN.sub(lambda _: table(), PAGE.read_text()))

#!/usr/bin/env python3
"""`probe healthz`, `probe readyz`: exit 0 if this host's agent says so. The image and the manifests ask with it.

A site that is about to join has no agent yet: it is healthy, and not ready. The agent answers with its own certificate where
it listens on more than loopback; this is loopback, so nothing is to be proved.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path

PORT = os.environ.get("PROBE_PORT", "8080")
HOME = Path(os.environ.get("SYNCAGENT_HOME", "/var/lib/syncagent"))
SECONDS = 4


def is_member() -> bool:
    return (HOME / "config.toml").exists() and not (HOME / "joining.json").exists()


def answers(url: str) -> bool:
    unproved = ssl.create_default_context()
    unproved.check_hostname, unproved.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=SECONDS, context=unproved) as answer:  # noqa: S310
        return bool(answer.status == 200)


def main(path: str) -> int:
    if not is_member():
        return 0 if path == "healthz" else 1
    trouble = ""
    for scheme in ("https", "http"):
        try:
            return 0 if answers(f"{scheme}://127.0.0.1:{PORT}/{path}") else 1
        except urllib.error.HTTPError as error:
            sys.stderr.write(f"{path}: {error.code} {error.read(1000).decode(errors='replace')}\n")
            return 1
        except OSError as error:
            trouble = f"{path}: {error}\n"
    sys.stderr.write(trouble)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

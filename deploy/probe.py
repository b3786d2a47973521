#!/usr/bin/env python3
"""`probe`: exit 0 if this host's agent runs and reaches its database, as `syncagent status` sees it.

The image and the manifests ask with it. A site that is about to join has no agent yet, and is not ready.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ.get("SYNCAGENT_HOME", "/var/lib/syncagent"))
SECONDS = 8


def main() -> int:
    if not (HOME / "config.toml").exists() or (HOME / "joining.json").exists():
        sys.stderr.write("this site is no member yet\n")
        return 1
    try:
        done = subprocess.run(
            ["syncagent", "status", "--json"], capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        sys.stderr.write(f"no answer within {SECONDS} s\n")
        return 1
    try:
        state = json.loads(done.stdout)[0]["state"]
    except ValueError:
        sys.stderr.write(done.stderr)
        return 1
    if state != "running":
        sys.stderr.write(f"the agent is {state}\n")
    return 0 if state == "running" else 1


if __name__ == "__main__":
    sys.exit(main())

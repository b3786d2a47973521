"""pglogical, both ways; of two writes the later one wins. What comes from the other side goes no further."""

import subprocess
from collections.abc import Sequence
from typing import ClassVar

from bench.packages import PGLOGICAL, Root
from bench.pair import Stage
from bench.waiting import until
from syncagent.embedded import Setting

_SECONDS = 60.0


class Pglogical:
    name = "pglogical"
    package = PGLOGICAL
    lingers: ClassVar[str | None] = "pglogical supervisor"

    def __init__(self, root: Root) -> None:
        self._root = root

    @staticmethod
    def settings(root: Root) -> dict[str, Setting]:
        settings: dict[str, Setting] = {
            "shared_preload_libraries": "pglogical",
            "pglogical.conflict_resolution": "last_update_wins",
            "track_commit_timestamp": True,
        }
        known = subprocess.run(
            [root.binaries().folder / "postgres", "--describe-config"],
            capture_output=True,
            text=True,
            check=True,
        )
        if (
            "output_plugin_libraries" in known.stdout
        ):  # minor versions that let in only plugins that are named
            settings["output_plugin_libraries"] = "pgoutput,pglogical_output"
        return settings

    def start(self, stage: Stage) -> None:
        self._stage = stage
        self._sites = {"a": stage.a, "b": stage.b}
        dsns = dict(zip("ab", stage.dsns, strict=True))
        for name, site in self._sites.items():
            site.execute("create extension pglogical")
            site.execute("select pglogical.create_node(%s, %s)", (name, dsns[name]))
            site.execute("select pglogical.replication_set_add_table('default', 'orders')")
        for receiver, origin in ("ba", "ab"):
            self._sites[receiver].execute(
                "select pglogical.create_subscription(%s, %s, synchronize_structure := false,"
                " synchronize_data := false, forward_origins := '{}')",
                (f"from_{origin}", dsns[origin]),
            )
            self._await(receiver, "replicating")
        for backwards in (True, False):
            stage.await_row(stage.mark(backwards=backwards), backwards=backwards)

    def _await(self, receiver: str, status: str) -> None:
        told = "select from pglogical.show_subscription_status() where status = %s"
        until(
            lambda: self._sites[receiver].execute(told, (status,)).rowcount,
            f"a subscription of pglogical that is {status}",
            _SECONDS,
        )

    def pause(self) -> None:
        self._stage.b.execute("select pglogical.alter_subscription_disable('from_a', true)")
        active = "select from pg_replication_slots where database = current_database() and active"
        until(
            lambda: not self._stage.a.execute(active).rowcount, "the end of a subscription's sender", _SECONDS
        )

    def resume(self) -> None:
        self._stage.b.execute("select pglogical.alter_subscription_enable('from_a', true)")

    def processes(self) -> Sequence[int]:
        return ()

    def stop(self) -> None:
        """The slots go with the subscriptions."""
        for receiver, origin in ("ba", "ab"):
            self._sites[receiver].execute("select pglogical.drop_subscription(%s, true)", (f"from_{origin}",))

"""`python -m examples.mlflow --sites 2`: MLflow's tracking store at several sites at once, kept equal by syncagent.

MLflow makes its tables at every site, what all teams share is made at the first; then a team at each site logs, with
links up and with links paused, and all sites are compared: by SQL over every table, and by what MLflow itself reads.
In the end the teams do what no database can settle for them: they give two experiments the same name.
"""

import argparse
import sys
from pathlib import Path

from .. import runner
from ..cluster import Application, Cluster
from ..runner import phase, same, settle, show

STRIDE = "16"
APART_SECONDS = 5.0
NAME = "the experiment"


def tracking(folder: Path) -> Application:
    del folder
    return Application(
        name="tracking",
        program=("-m", "examples.mlflow.training"),
        environment=lambda dsn: {"TRACKING_URI": dsn.replace("postgresql:", "postgresql+psycopg:")},
        history="alembic_version",
        own=("jobs", "job_locks", "scheduler_leases"),
        reported=("uq_experiments_workspace_name",),
    )


def story(cluster: Cluster, options: argparse.Namespace) -> str:
    phase(f"starting {options.sites} PostgreSQL servers, and making MLflow's tables at each")
    cluster.start()
    cluster.everywhere(lambda _: ["migrate"], owner=True)
    cluster.program(cluster.sites[0], "prepare")
    phase("syncagent adopt")
    show("what `syncagent adopt` says:", cluster.adopt())
    phase("making sites of them: init, run, attach --all, join")
    cluster.connect("--derive-key", "--stride", STRIDE)
    cluster.converge()
    same(cluster.reports(), "the stores before the load")

    phase(f"a team at each site logs for {options.seconds:.0f} s")
    work(cluster, options.seconds, f"{options.seed}")
    phase(f"{APART_SECONDS:.0f} s more while no site applies what the others log")
    with cluster.apart():
        work(cluster, APART_SECONDS, f"{options.seed} apart")
        mine = [report["experiments"] for report in cluster.reports()]
    equal = settle(cluster)
    phase("reading all of it with MLflow, at each site")
    reports = cluster.reports()
    same(reports, "what MLflow reads")
    for number, before in enumerate(mine, 1):
        own = [name for name in before if name.startswith(f"team {number},")]
        found = [{name: at[name] for name in own} for at in (before, reports[-1]["experiments"])]
        same(found, f"team {number}'s experiments at its own site, and at the last one")
    conflicts = [site.conflicts() for site in cluster.sites]
    collide(cluster)
    runs = sum(len(one["runs"]) for one in reports[0]["experiments"].values())
    return f"{equal}, {len(reports[0]['experiments'])} experiments, {runs} runs, {max(conflicts)} conflicts"


def work(cluster: Cluster, seconds: float, seed: str) -> None:
    done = cluster.everywhere(
        lambda site: ["train", "--team", str(site.number), "--seconds", str(seconds), "--seed", seed]
    )
    for site, what in zip(cluster.sites, done, strict=True):
        print(f"team of {site.name}: {what.strip()}", flush=True)


def collide(cluster: Cluster) -> None:
    """An experiment of each team with one name, at the same moment: the name is unique."""
    phase("each team makes an experiment of the same name")
    with cluster.apart():
        cluster.everywhere(lambda _: ["create", NAME])
    cluster.until(lambda: all(cluster.parked()), "the other team's experiment is parked at each site")
    show(
        f"`syncagent parked list` at {cluster.sites[0].name}:",
        cluster.sites[0].command("parked", "list"),
    )
    phase("everything else goes on")
    work(cluster, 2, "meanwhile")
    phase("all teams but the first give theirs another name")
    for site in cluster.sites[1:]:
        cluster.program(site, "rename", NAME, f"{NAME} of team {site.number}")
    cluster.until(lambda: not any(cluster.parked()), "nothing is parked")
    settle(cluster)
    same(cluster.reports(), "what MLflow reads after the collision")


if __name__ == "__main__":
    sys.exit(runner.main(tracking, "mlflow", __doc__.splitlines()[0], story))

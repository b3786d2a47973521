"""What data scientists do with MLflow: experiments, runs, parameters, metrics, tags; by MLflow's own client.

    TRACKING_URI=postgresql+psycopg://... python -m examples.mlflow.training migrate|prepare|train|report|...

It was written for one tracking store, and knows of nothing else. A team's experiments and runs are its own; the
shared experiment, and the tags of its runs, belong to all teams.
"""

import argparse
import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

SHARED = "shared"
SHARED_RUNS = 4
WORDS = [
    "adam",
    "sgd",
    "relu",
    "gelu",
    "dropout",
    "warmup",
    "cosine",
    "plateau",
    "batch",
    "layer",
    "residual",
    "attention",
    "pooling",
]


class Team:
    """A task is one request of a client, or a few, each a transaction of the store."""

    def __init__(self, client: MlflowClient, number: int, rng: random.Random) -> None:
        self.client, self.number, self.rng = client, number, rng
        self.done: Counter[str] = Counter()
        self._open: list[str] = []
        self._experiment = self._new_experiment()
        self._tasks: dict[Callable[[], bool], int] = {
            self.start: 12,
            self.log_step: 30,
            self.log_batch: 10,
            self.end: 6,
            self.rename: 4,
            self.remove: 3,
            self.restore: 2,
            self.untag: 4,
            self.new_experiment: 1,
            self.tag_a_shared_run: 10,
            self.log_to_a_shared_run: 8,
            self.rename_a_shared_run: 4,
            self.describe_the_shared_experiment: 4,
            self.register: 2,
        }

    def everything(self) -> None:
        for task in self._tasks:
            self._do(task)

    def one(self) -> None:
        self._do(self.rng.choices(list(self._tasks), list(self._tasks.values()))[0])

    def _do(self, task: Callable[[], bool]) -> None:
        self.done[task.__name__ if task() else "nothing to do"] += 1

    # ---- its own

    def _new_experiment(self) -> str:
        name = f"team {self.number}, {self.rng.choice(WORDS)} {self.rng.randrange(10**9)}"
        return str(self.client.create_experiment(name, tags={"team": str(self.number)}))

    def new_experiment(self) -> bool:
        self._experiment = self._new_experiment()
        return True

    def start(self) -> bool:
        run = self.client.create_run(self._experiment, tags={"team": str(self.number)}).info.run_id
        for name in self.rng.sample(WORDS, 3):
            self.client.log_param(run, name, self.rng.choice([0.1, "naïve", "ü 😀", 3, "x" * 500]))
        self._open.append(run)
        return True

    def log_step(self) -> bool:
        """One metric at a time, not a number and infinity among them."""
        if not self._open:
            return False
        value = self.rng.choice([self.rng.random(), -self.rng.random() * 1e-300, math.nan, math.inf, 0.0])
        self.client.log_metric(
            self.rng.choice(self._open), "loss", value, step=self.rng.randrange(1000), timestamp=self._now()
        )
        return True

    def log_batch(self) -> bool:
        if not self._open:
            return False
        now = self._now()
        metrics = [Metric(self.rng.choice(WORDS), self.rng.gauss(0, 1), now, step) for step in range(50)]
        name = f"param {self.rng.randrange(10**9)}"
        self.client.log_batch(
            self.rng.choice(self._open), metrics, [Param(name, "1")], [RunTag(self.rng.choice(WORDS), "on")]
        )
        return True

    def end(self) -> bool:
        if not self._open:
            return False
        run = self._open.pop(self.rng.randrange(len(self._open)))
        self.client.set_terminated(run, self.rng.choice(["FINISHED", "FAILED", "KILLED"]))
        return True

    def rename(self) -> bool:
        if not self._open:
            return False
        self.client.update_run(self.rng.choice(self._open), name=f"{self.rng.choice(WORDS)} again")
        return True

    def remove(self) -> bool:
        if not self._open:
            return False
        self.client.delete_run(self._open.pop(0))
        return True

    def restore(self) -> bool:
        gone = self.client.search_runs([self._experiment], run_view_type=ViewType.DELETED_ONLY)
        if not gone:
            return False
        self.client.restore_run(gone[0].info.run_id)
        return True

    def untag(self) -> bool:
        """Takes a row away: the tag it gave, or one of a batch."""
        if not self._open:
            return False
        run = self.client.get_run(self.rng.choice(self._open))
        tags = sorted(set(run.data.tags) & {"team", *WORDS})
        if not tags:
            return False
        self.client.delete_tag(run.info.run_id, self.rng.choice(tags))
        return True

    def register(self) -> bool:
        """A model, with an alias."""
        name = f"model {self.number}-{self.rng.randrange(10**9)}"
        self.client.create_registered_model(name, tags={"team": str(self.number)})
        return True

    # ---- everybody's

    def _shared_run(self) -> Run:
        experiment = self.client.get_experiment_by_name(SHARED)
        assert experiment is not None
        runs = self.client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
        return self.rng.choice(list(runs))

    def tag_a_shared_run(self) -> bool:
        name = self.rng.choice(WORDS[:4])
        self.client.set_tag(
            self._shared_run().info.run_id, name, f"team {self.number}: {self.rng.random():.6f}"
        )
        return True

    def log_to_a_shared_run(self) -> bool:
        """Points of all teams come together; which is the latest, the last write decides."""
        run = self._shared_run().info.run_id
        self.client.log_metric(
            run, f"score of team {self.number}", self.rng.random(), step=self.rng.randrange(10**9)
        )
        return True

    def rename_a_shared_run(self) -> bool:
        self.client.update_run(
            self._shared_run().info.run_id, name=f"run of team {self.number} {self.rng.random():.3f}"
        )
        return True

    def describe_the_shared_experiment(self) -> bool:
        experiment = self.client.get_experiment_by_name(SHARED)
        assert experiment is not None
        text = f"team {self.number} says {self.rng.choice(WORDS)} {self.rng.random():.6f}"
        self.client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", text)
        return True

    def _now(self) -> int:
        return int(time.time() * 1000)


def prepare(client: MlflowClient) -> None:
    """What all teams share."""
    experiment = client.create_experiment(SHARED)
    for number in range(SHARED_RUNS):
        client.create_run(experiment, run_name=f"shared {number + 1}")


def report(client: MlflowClient) -> dict[str, Any]:
    """Everything, as MLflow's own search and reading find it."""
    experiments = client.search_experiments(view_type=ViewType.ALL, order_by=["experiment_id"])
    found: dict[str, Any] = {}
    for experiment in experiments:
        runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL, max_results=10_000)
        found[experiment.name] = {
            "id": experiment.experiment_id,
            "stage": experiment.lifecycle_stage,
            "tags": experiment.tags,
            "runs": {
                run.info.run_id: _whole(client, run) for run in sorted(runs, key=lambda r: r.info.run_id)
            },
        }
    models = client.search_registered_models(max_results=1000)
    return {"experiments": found, "models": sorted(model.name for model in models)}


def _whole(client: MlflowClient, run: Run) -> dict[str, Any]:
    histories = {
        key: sorted(
            repr((m.timestamp, m.step, m.value)) for m in client.get_metric_history(run.info.run_id, key)
        )
        for key in sorted(run.data.metrics)
    }
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "stage": run.info.lifecycle_stage,
        "params": run.data.params,
        "tags": run.data.tags,
        "latest": {key: repr(value) for key, value in sorted(run.data.metrics.items())},
        "points": histories,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.mlflow.training")
    parser.add_argument("verb", choices=["migrate", "prepare", "train", "report", "create", "rename"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--team", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    uri = os.environ["TRACKING_URI"]
    if options.verb == "migrate":
        SqlAlchemyStore(uri, "mlruns")  # makes what is missing
        return
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if options.verb == "prepare":
        prepare(client)
    elif options.verb == "train":
        team = Team(client, options.team, random.Random(f"{options.seed}/{options.team}"))
        end = time.monotonic() + options.seconds
        team.everything()
        while time.monotonic() < end:
            team.one()
        json.dump(team.done, sys.stdout)
    elif options.verb == "report":
        json.dump(report(client), sys.stdout)
    elif options.verb == "create":
        client.create_experiment(options.names[0])
    else:
        experiment = client.get_experiment_by_name(options.names[0])
        client.rename_experiment(experiment.experiment_id, options.names[1])


if __name__ == "__main__":
    main()

"""`python -m examples.wagtail --sites 2`: a Wagtail newsroom at several sites at once, kept equal by syncagent.

Migrations at every site, one newsroom prepared at the first; then a desk at each site writes, with links up and with
links paused, and all sites are compared: by SQL over every table, and by what Wagtail itself reads. In the end
the desks do what no database can settle for them: each adds a page below the same parent.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import runner
from ..cluster import Application, Cluster
from ..runner import phase, same, settle, show
from ..sites import SiteError

STRIDE = "16"
APART_SECONDS = 5.0
SETTINGS = "examples.wagtail.newsroom.settings"


def newsroom(folder: Path) -> Application:
    media = folder / "media"  # one store for all sites, as a bucket would be
    media.mkdir()
    return Application(
        name="newsroom",
        program=("-m", "django"),
        environment=lambda dsn: {
            "DATABASE_URL": dsn,
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "MEDIA_ROOT": str(media),
        },
        history="django_migrations",
        own=("django_session", "wagtailembeds_embed", "wagtailimages_rendition"),
        reported=("wagtailcore_page_path_key",),
    )


def story(cluster: Cluster, options: argparse.Namespace) -> str:
    phase(f"starting {options.sites} PostgreSQL servers, and migrating at each")
    cluster.start()
    cluster.everywhere(lambda _: ["migrate", "--no-input", "--verbosity", "0"], owner=True)
    first = cluster.sites[0]
    cluster.program(first, "prepare", "--desks", str(options.sites))
    phase("syncagent adopt")
    show("what `syncagent adopt` says:", cluster.adopt())
    phase("making sites of them: init, run, attach --all, join")
    cluster.connect("--derive-key", "--stride", STRIDE)
    cluster.converge()
    same(sound(cluster), "the newsrooms before the load")

    phase(f"a desk at each site writes for {options.seconds:.0f} s")
    work(cluster, options.seconds, f"{options.seed}")
    phase(f"{APART_SECONDS:.0f} s more while no site applies what the others write")
    with cluster.apart():
        work(cluster, APART_SECONDS, f"{options.seed} apart")
        mine = [report["articles"] for report in sound(cluster, apart=True)]
    equal = settle(cluster)
    phase("reading all of it with Wagtail, at each site")
    reports = sound(cluster)
    same(reports, "what Wagtail reads")
    for number, before in enumerate(mine, 1):
        title = f"Desk {number}"
        same([before[title], reports[-1]["articles"][title]], f"{title} at its own site, and at the last one")
    conflicts = [site.conflicts() for site in cluster.sites]
    collide(cluster)
    return f"{equal}, {reports[0]['pages']} pages, {max(conflicts)} conflicts"


def work(cluster: Cluster, seconds: float, seed: str) -> None:
    done = cluster.everywhere(
        lambda site: ["desk", "--desk", str(site.number), "--seconds", str(seconds), "--seed", seed]
    )
    for site, what in zip(cluster.sites, done, strict=True):
        print(f"desk of {site.name}: {what.strip()}", flush=True)


def collide(cluster: Cluster) -> None:
    """A page of each desk below one parent, at the same moment: both get the same path, which is unique."""
    phase("each desk adds a page below the same parent")
    with cluster.apart():
        cluster.everywhere(lambda site: ["post", "--desk", str(site.number)])
    cluster.until(lambda: all(cluster.parked()), "the page of the other desk is parked at each site")
    show(
        f"`syncagent parked list` at {cluster.sites[0].name}:",
        cluster.sites[0].command("parked", "list"),
    )
    phase("everything else goes on")
    work(cluster, 2, "meanwhile")
    cluster.until(lambda: not list(unlike(cluster)), "the desks' other work is everywhere")
    phase("all desks but the first take their page away, and Wagtail counts children again")
    for site in cluster.sites[1:]:
        cluster.program(site, "post", "--desk", str(site.number), "--away")
    cluster.until(lambda: not any(cluster.parked()), "nothing is parked")
    settle(cluster)
    show(
        "what Wagtail finds wrong with its tree now:", "\n".join(cluster.reports()[0]["faults"]) or "nothing"
    )
    show("`fixtree`:", cluster.program(cluster.sites[0], "fixtree"))
    settle(cluster)
    same(sound(cluster), "what Wagtail reads after the collision")


def sound(cluster: Cluster, *, apart: bool = False) -> list[dict[str, Any]]:
    """What Wagtail reads at each site; raises if anything is wrong with it. While sites are `apart`, a picture that one has
    thrown away is still a row at the others, and its file is gone from the store that they share."""
    reports = cluster.reports()
    if faults := [
        f"{site.name}: {fault}"
        for site, at in zip(cluster.sites, reports, strict=True)
        for fault in at["faults"]
        if not (apart and fault.endswith("has no file"))
    ]:
        raise SiteError("\n".join(["Wagtail finds faults", *faults]))
    return reports


def unlike(cluster: Cluster) -> Iterator[str]:
    """Desks whose articles are not the same at all sites."""
    found = [report["articles"] for report in sound(cluster)]
    for title in found[0]:
        if title != "Noticeboard" and len({str(at_site[title]) for at_site in found}) > 1:
            yield title


if __name__ == "__main__":
    sys.exit(runner.main(newsroom, "wagtail", __doc__.splitlines()[0], story))

"""What lies in `deploy/` is sound as far as that can be said without a container: each file by the tool that knows its kind."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from syncagent import __version__

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = ("1.28", "1.37.0")


def checked(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tool(name: str) -> Path:
    """Of the environment that runs the tests."""
    return Path(sys.executable).with_name(name)


def documents(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load_all(path.read_text())


def mappings(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(tree, dict):
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from mappings(below)


# ---- the image


def test_scripts_and_dockerfile_pass_their_linters() -> None:
    checked(tool("shellcheck"), *DEPLOY.rglob("*.sh"))
    checked(tool("hadolint"), DEPLOY / "Dockerfile")


def test_the_image_holds_no_build_and_runs_as_nobody_in_particular() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert last.index("USER") > last.rindex("RUN")
    assert "pip install" not in last


def test_what_the_image_copies_is_not_ignored() -> None:
    """`.dockerignore` lets in what is named, and nothing else."""
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    text = re.sub(r"^COPY --from.*", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    copied = {
        word
        for line in re.findall(r"^COPY (.*)", text, re.MULTILINE)
        for word in [word for word in line.split() if not word.startswith("--")][:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in copied)


# ---- docker compose


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_compose_fits_its_schema(compose: dict[str, Any]) -> None:
    schema = files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text()
    jsonschema.validate(compose, json.loads(schema))


def test_compose_mounts_what_is_there_and_tells_no_secret(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in compose["volumes"], (
                volume
            )
        for variable, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|TOKEN|SECRET", variable)
            assert not secret or (variable.endswith("_FILE") and value.startswith("/run/secrets/")), variable
            assert not re.search(r"://[^/@]*:[^/@]*@", value), value
        assert set(service.get("depends_on", {})) <= set(services), name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), port


def test_compose_names_what_the_entrypoint_reads(compose: dict[str, Any]) -> None:
    text = (DEPLOY / "entrypoint.sh").read_text()
    read = set(re.findall(r"\$\{?(SITE_[A-Z_]+)", text))
    documented = set(re.findall(r"^#   (SITE_[A-Z_]+) ", text, re.MULTILINE))
    assert read == documented
    for name in ("berlin", "tokyo", "lima"):
        options = {"SYNCAGENT_RUN_HTTP"}  # of `syncagent run`, which it becomes
        assert set(compose["services"][name]["environment"]) <= read | options


# ---- systemd


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_the_unit_is_sound_and_exposes_little(tmp_path: Path) -> None:
    unit = tmp_path / "syncagent.service"
    text = (DEPLOY / "systemd" / "syncagent.service").read_text()
    unit.write_text(text.replace("/opt/syncagent/bin/syncagent", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if str(unit) in line]
    assert ours == []
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout


# ---- Kubernetes


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_fit_the_schemas(version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="its schemas are not here: make deploy")
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            for document in documents(path):
                validator.validate(document, version, strict=True)


def test_kustomization_lists_every_manifest() -> None:
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    assert set(kustomization["resources"]) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}


def test_manifests_agree_with_each_other() -> None:
    found = {document["kind"]: document for path in MANIFESTS for document in documents(path)}
    (container,) = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    pod = found["StatefulSet"]["spec"]["template"]
    labels = pod["metadata"]["labels"].items()
    for selector in (
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels
    assert pod["spec"]["serviceAccountName"] == found["ServiceAccount"]["metadata"]["name"]
    assert found["StatefulSet"]["spec"]["serviceName"] == found["Service"]["metadata"]["name"]
    assert container["image"].endswith(f":{__version__}")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert found["Service"]["spec"]["ports"][0]["targetPort"] in ports
    allowed = {p["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for p in rule["ports"]}
    assert allowed == set(ports.values())


def test_the_pod_has_no_right_that_it_does_not_need() -> None:
    (stateful,) = documents(DEPLOY / "kubernetes" / "statefulset.yaml")
    pod = stateful["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "readinessProbe" in container
    read = set(re.findall(r"SITE_[A-Z_]+", (DEPLOY / "entrypoint.sh").read_text()))
    assert {variable["name"] for variable in container["env"]} <= read
    for mapping in mappings(stateful):
        assert not re.search(r"://[^/@]*:[^/@]*@", str(mapping.get("value", "")))

"""What is published holds everything, and works where the repository is not."""

import email
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUNDLED = ("sql", "migrations", "bench")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked(folder: str) -> set[str]:
    """The files that belong to a folder, without what Python left there."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of the environment that runs the tests."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, symlinks=True)
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", home / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    places = [place for place in sys.path if place.endswith("site-packages")]
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(places))
    return home / "bin"


def test_sdist_holds_every_file_of_the_bundled_folders(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    for folder in BUNDLED:
        assert tracked(folder) <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names


def test_wheel_is_small_and_says_what_it_is_for(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    assert wheel.stat().st_size < 2_000_000
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        (about,) = (files.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"syncagent"}
    console = tracked("agent/syncagent/web/console")
    assert {f"agent/{name}" for name in names} >= console
    assert len(console) > 5
    said = email.message_from_string(about)
    assert said["Requires-Python"] == ">=3.11"
    assert "demo" in said.get_all("Provides-Extra", [])
    pythons = {line.rpartition(" ")[2] for line in said.get_all("Classifier", []) if ":: 3." in line}
    assert pythons == {"3.11", "3.12", "3.13", "3.14"}
    assert "make demo" in said.get_payload()  # the page of a package index is the README


def test_wheel_finds_its_files_without_the_repository(installed: Path) -> None:
    show = "from syncagent import resources as r; print(*(p.resolve() for p in (r.sql(), r.migrations(), r.bench())))"
    for folder, place in zip(BUNDLED, run(installed / "python", "-c", show).split(), strict=True):
        path = Path(place)
        assert path.is_relative_to(installed.parent)
        assert {str(Path(folder) / p.relative_to(path)) for p in path.rglob("*") if p.is_file()} >= tracked(
            folder
        )


def test_wheel_has_a_command_that_tells_its_version(installed: Path) -> None:
    version = run(installed / "python", "-c", "import syncagent; print(syncagent.__version__)").strip()
    assert version in run(installed / "syncagent", "--version")
    assert version in run(installed / "python", "-m", "syncagent", "--version")

"""The wheel on every Python that it names: installed from the registry into an environment of its own, imported whole, and shown.

`make test-pythons`. An interpreter that is not on this machine is named and left out; none at all is a failure.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_IMPORT_ALL = """
import importlib, pkgutil, syncagent
names = [found.name for found in pkgutil.walk_packages(syncagent.__path__, "syncagent.") if not found.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names), "modules")
"""


def versions() -> list[str]:
    """Those of the classifiers."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return [found[1] for line in classifiers if (found := re.fullmatch(r".*Python :: (3\.\d+)", line))]


def interpreter(version: str) -> Path | None:
    """One that runs: on the path, or among those that pyenv has built."""
    named = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    built = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    for path in [*named, *built]:
        done = subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True, check=False)
        if done.returncode == 0:
            return path
    return None


def run(*command: str | Path) -> str:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def tried(python: Path, wheel: Path, folder: Path) -> Iterator[str]:
    run(python, "-m", "venv", folder)
    bin_ = folder / "bin"
    run(
        *(bin_ / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--constraint", ROOT / "constraints.txt", f"{wheel}[demo,traces]"),  # every module is imported
    )
    yield run(bin_ / "python", "--version")
    yield run(bin_ / "syncagent", "--version")
    yield run(bin_ / "python", "-W", "error::SyntaxWarning", "-c", _IMPORT_ALL)
    yield run(bin_ / "syncagent", "demo", "--plain", "--seconds", "5").splitlines()[-1]


def main() -> None:
    missing, failed = [], False
    with tempfile.TemporaryDirectory(prefix="syncagent-pythons-") as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
        (wheel,) = folder.glob("*.whl")
        for version in versions():
            python = interpreter(version)
            if python is None:
                missing.append(version)
                continue
            try:
                sys.stdout.write("; ".join(tried(python, wheel, folder / version)) + "\n")
            except SystemExit as error:
                sys.stdout.write(f"Python {version}: {error}\n")
                failed = True
            sys.stdout.flush()
    if missing:
        sys.stdout.write(f"not on this machine: {', '.join(missing)}\n")
    if failed or len(missing) == len(versions()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

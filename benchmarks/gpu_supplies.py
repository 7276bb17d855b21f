"""What a machine lacks, and what of it a folder of wheels can give: `python benchmarks/gpu_supplies.py SITE [FOLDER]`.

Runs before anything is installed, so it imports nothing but the standard library and pip. Nothing is downloaded.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # pip is needed anyway, and packaging may not be there

ROOT = Path(__file__).resolve().parents[1]
# Which pieces go without which package; all other needs of the project are needed by all of them.
OPTIONAL = {
    "pytest": "the tests with the mark gpu",
    "hypothesis": "tests that import it",
    "gfloat": "tests that compare with it",
    "triton": "the Triton kernels",
    "nvidia-ml-py": "measured energy (NVML): it is absent in every result",
    "llvmlite": "the fast quantizers of a CPU",
}


def requirements() -> list[str]:
    """Names of what the project's pyproject.toml needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [re.split(r"[<>=!~;\[ ]", needed, maxsplit=1)[0] for needed in project["dependencies"]]


def absent(names: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if not _installed(name)]


def absent_below(names: Iterable[str]) -> dict[str, str]:
    """What the installed ones of these need in turn and is not installed, with who needs it.

    What torch needs is left aside: its wheels name parts of CUDA that may have come in another way.
    """
    found: dict[str, str] = {}
    seen, waiting = {"torch"}, [name for name in names if _installed(name)]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for needed in map(Requirement, distribution(name).requires or ()):
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            if _installed(needed.name):
                waiting.append(needed.name)
            else:
                found.setdefault(needed.name, name)
    return found


def install(wheels: Iterable[Path], site: Path) -> list[str]:
    """Put the wheels of what is not installed into ``site``; returns their names.

    Raises subprocess.CalledProcessError when pip cannot, such as for a wheel of another Python.
    """
    chosen = [wheel for wheel in wheels if not _installed(wheel.name.split("-")[0])]
    if chosen:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
        ]
        subprocess.run([*pip, "--no-compile", "--upgrade", "--target", str(site), *map(str, chosen)], check=True)
    return [wheel.name.split("-")[0] for wheel in chosen]


def name_project(site: Path) -> None:
    """The sources run where they are; only their version has to be known to importlib."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if _installed(project["name"]):
        return
    folder = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")


def main(site: Path, folder: Path | None) -> int:
    """Install what is missing and say what is missing still. 1: nothing can run."""
    site.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(site))
    found = [] if folder is None else sorted({*folder.glob("*.whl"), *folder.glob("wheels/*.whl")})
    try:
        if names := install(found, site):
            _say(f"installed from {folder}: {', '.join(names)}")
        name_project(site)
    except subprocess.CalledProcessError as error:
        _say(f"the wheels in {folder} could not be installed (pip ended with {error.returncode})")
        return 1
    for name in absent(OPTIONAL):
        _say(f"lacks {name}; without it goes: {OPTIONAL[name]}")
    for name, of in absent_below([*requirements(), *OPTIONAL]).items():
        _say(f"lacks {name}, which {of} asks for")
    if lacking := absent(name for name in requirements() if name not in OPTIONAL):
        place = "a folder of wheels" if folder is None else f"{folder} or its folder wheels"
        _say(f"this machine lacks {', '.join(lacking)}; put wheels of them into {place}")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _installed(name: str) -> bool:
    try:
        distribution(name)
        return True
    except PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else None))

"""Which software a result was made with."""

from __future__ import annotations

import hashlib
import platform
from functools import lru_cache
from importlib import resources
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("lowprec-eb", "torch", "numpy", "qtorch", "torch-pruning", "scikit-learn", "safetensors")


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on.

    Raises:
        ImportError: one of them is not installed.
    """
    try:
        return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    except PackageNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: run `pip install .` in the project's folder") from error


# Sources that show results and do not make them: editing these leaves finished stages valid.
_PRESENTATION = (
    "report",
    "calibrate_command.py",
    "cli.py",
    "ledger_command.py",
    "progress.py",
    "report_command.py",
    "search.py",
    "search_command.py",
    "ticket_command.py",
    "workers.py",
)


@lru_cache(maxsize=1)
def software_fingerprint() -> str:
    """A hash of this project's sources and torch's version: results of other code are other results."""
    content = hashlib.sha256(version("torch").encode())
    for package in ("energy_models", "lowprec_eb"):
        with resources.as_file(resources.files(package)) as root:
            for path in sorted(root.rglob("*.py")):
                place = path.relative_to(root)
                if place.parts[0] not in _PRESENTATION:
                    content.update(f"{package}/{place.as_posix()}".encode() + path.read_bytes())
    return content.hexdigest()[:12]

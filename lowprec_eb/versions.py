"""Which software a result was made with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("lowprec-eb", "torch", "numpy", "qtorch", "torch-pruning", "scikit-learn", "safetensors")


def package_version() -> str:
    """The installed version of lowprec-eb.

    Raises:
        ImportError: it runs from a folder without being installed.
    """
    try:
        return version("lowprec-eb")
    except PackageNotFoundError as error:
        raise ImportError("lowprec-eb is not installed: run `pip install .` in its folder") from error


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    package_version()
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}

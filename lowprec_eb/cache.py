"""Where files lie that can be made again: compiled kernels and decoded images."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$LOWPREC_EB_CACHE``, else ``lowprec-eb`` in the user's cache folder.

    Raises RuntimeError where neither can be told: the variable is not set, and there is no home folder.
    """
    if chosen := os.environ.get("LOWPREC_EB_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lowprec-eb"

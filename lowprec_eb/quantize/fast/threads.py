"""Running a kernel on parts of a tensor at once."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from lowprec_eb.quantize.fast.objects import Kernel

Task = tuple[int, int, int]  # address of a buffer, first, last


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="lowprec_eb")


# A forked child has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """The range 0 to ``count`` in at most ``parts`` pieces of about one size.

    Random words and blocks depend on global indices, so results do not depend on the number of parts.
    """
    parts = max(1, min(parts, count))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def run(kernel: Kernel, tasks: list[Task]) -> None:
    """``kernel`` once for each (address, first, last), at the same time; this thread takes the first."""
    others = [_pool().submit(kernel, *task) for task in tasks[1:]]
    kernel(*tasks[0])
    for other in others:
        other.result()

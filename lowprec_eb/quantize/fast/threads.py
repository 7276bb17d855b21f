"""Running a kernel on parts of a tensor at once.

On Linux the threads are those of torch's own OpenMP library (GNU's or LLVM's): they are awake when torch has just used
them, and other threads beside them would have to wait until they sleep. Elsewhere, and in a forked child, which has
none of its parent's threads, Python's do.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch

from lowprec_eb.quantize.fast import objects, slots

Task = tuple[int, int, int]  # address of a buffer, first, last
Team = Callable[[int, int, int, int], None]  # OpenMP's function that calls another one in so many threads

PARALLEL_FROM = 1 << 17  # elements; below, waking a thread costs more than it saves
_PYTHON_THREADS_FROM = 1 << 20
_SMALLEST_PART = 1 << 16
_PARTS_A_THREAD = 4  # so that a thread that is held up delays the others less
_MAPPED = re.compile(r"\s(/.*/lib(?:gomp|iomp5|omp)(?:-[^/\n]*)?\.so[^/\n]*)$", re.MULTILINE)

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _pool.cache_clear()
    _openmp.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="lowprec_eb")


@lru_cache(maxsize=1)
def _openmp() -> Team | None:
    """``GOMP_parallel`` of torch's OpenMP library; None where there is none, or nobody can tell which it is."""
    maps = Path("/proc/self/maps")
    if _forked or not maps.is_file():
        return None
    loaded = sorted(set(_MAPPED.findall(maps.read_text())))
    brought = str(Path(torch.__file__).parent)  # torch/lib, or torch.libs beside it; other packages bring theirs
    libraries = [path for path in loaded if path.startswith((f"{brought}/", f"{brought}.libs/"))] or loaded
    if len(libraries) != 1:
        return None
    function = getattr(ctypes.CDLL(libraries[0]), "GOMP_parallel", None)
    if function is None:
        return None
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return function  # type: ignore[no-any-return]


def parts_of(elements: int) -> int:
    """Into how many parts to split a tensor."""
    threads = torch.get_num_threads()
    if threads == 1 or elements < PARALLEL_FROM:
        return 1
    if _openmp() is None:
        return threads if elements >= max(PARALLEL_FROM, _PYTHON_THREADS_FROM) else 1
    return max(threads, min(_PARTS_A_THREAD * threads, elements // _SMALLEST_PART))


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """The range 0 to ``count`` in at most ``parts`` pieces of about one size.

    Random words and blocks depend on global indices, so results do not depend on the number of parts.
    """
    parts = max(1, min(parts, count))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def run(kernel: objects.Kernel, tasks: list[Task]) -> None:
    """``kernel`` once for each (address, first, last), at the same time; this thread takes part."""
    team = _openmp() if len(tasks) > 1 else None
    if team is not None:
        _run_in_team(team, kernel, tasks)
        return
    others = [_pool().submit(kernel, *task) for task in tasks[1:]]
    kernel(*tasks[0])
    for other in others:
        other.result()


def _run_in_team(team: Team, kernel: objects.Kernel, tasks: list[Task]) -> None:
    """Every thread takes the next task until none is left."""
    head = [0] * slots.TASKS
    head[slots.TASK_KERNEL], head[slots.TASK_COUNT] = objects.address_of(kernel), len(tasks)
    numbers = [*head, *(number for task in tasks for number in task)]
    buffer = (ctypes.c_int64 * len(numbers))(*numbers)
    threads = min(torch.get_num_threads(), len(tasks))
    team(objects.address_of(objects.kernel("take_tasks")), ctypes.addressof(buffer), threads, 0)

"""Watching a model run without values: ghosts are its tensors, the tracer sees each operator that they meet."""

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0  # global: on a GPU the backward pass runs in a thread of its own


def is_counting() -> bool:
    """Whether a model is being counted: who simulates an operation in several steps then does it in one."""
    return _depth > 0


@contextmanager
def counting() -> Iterator[None]:
    """While entered, :func:`is_counting`."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1

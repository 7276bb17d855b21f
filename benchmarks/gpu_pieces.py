"""Commands in pieces: each in what is left of a call's time, none twice, and a record of how each ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from gpu_supplies import absent

UNFINISHED_STATUS = 75
_GRACE_S = 30.0  # from the interrupt to the kill: an epoch's checkpoint, a report
_LEAST_S = 15.0  # less than imports and a first step take

State = Literal["done", "failed", "unfinished"]


@dataclass(frozen=True)
class Piece:
    """A command and what it needs.

    seconds: about what it takes on a GPU. goes_on: run again it goes on where it was, so any time is worth it; it may
    end by itself with status 75, which asks for another call. needs: packages. environment: None removes a variable.
    stands: asked once it is done, whether its results are still those that are wanted.
    """

    name: str
    command: tuple[str, ...]
    seconds: float = 60.0
    goes_on: bool = False
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    stands: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Ending:
    """How a piece ended. seconds: of all calls. sources: a hash of what ran, see ``on_gpu.sources``."""

    state: State
    status: int
    seconds: float
    sources: str
    commit: str


class Pieces:
    """The record, in a file, and the running of pieces."""

    def __init__(self, results: Path, sources: str, commit: str) -> None:
        self.path, self.logs = results / "pieces.json", results / "logs"
        self.sources, self.commit = sources, commit
        self.endings: dict[str, Ending] = {}
        if self.path.is_file():
            self.endings = {name: Ending(**of) for name, of in json.loads(self.path.read_text()).items()}
        self.logs.mkdir(parents=True, exist_ok=True)

    def is_settled(self, piece: Piece) -> bool:
        """Whether it is done and stands, or failed with these very sources: run again it would fail alike."""
        ending = self.endings.get(piece.name)
        if ending is None or ending.state == "unfinished":
            return False
        return piece.stands() if ending.state == "done" else ending.sources == self.sources

    def why_not(self, piece: Piece, left_s: float, fresh: bool) -> str | None:
        """Why it is not to be begun now; None: begin. ``fresh``: nothing has run in this call."""
        if lacking := absent(piece.needs):
            return f"lacks {', '.join(lacking)}"
        enough = _LEAST_S if piece.goes_on or fresh else max(_LEAST_S, piece.seconds)
        return None if left_s >= enough else "waits for the next call"

    def run(self, piece: Piece, left_s: float, fresh: bool) -> Ending:
        """Run it for at most ``left_s`` seconds and write down how it ended.

        A piece that does not go on and had a whole call to itself has failed: another call would not be enough either.
        """
        begin = time.monotonic()
        status = self._run(piece, left_s)
        took, before = time.monotonic() - begin, self.endings.get(piece.name)
        state: State = "done" if status == 0 else "failed"
        if status in (UNFINISHED_STATUS, 128 + signal.SIGINT):
            state = "unfinished" if piece.goes_on or not fresh else "failed"
        earlier = before.seconds if before is not None and before.state == "unfinished" and piece.goes_on else 0.0
        ending = Ending(state, status, round(earlier + took, 1), self.sources, self.commit)
        self._write(piece.name, ending)
        return ending

    def _write(self, name: str, ending: Ending) -> None:
        self.endings[name] = ending
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({name: asdict(of) for name, of in self.endings.items()}, indent=1) + "\n")
        fresh.replace(self.path)

    def _run(self, piece: Piece, left_s: float) -> int:
        environment = {**os.environ, **{k: v for k, v in piece.environment.items() if v is not None}}
        for name in (name for name, value in piece.environment.items() if value is None):
            environment.pop(name, None)
        mode = "a" if piece.goes_on else "w"
        out, err = (self.logs / f"{piece.name}.{kind}" for kind in ("out", "err"))
        with out.open(mode) as stdout, err.open(mode) as stderr:
            # A group of its own: an interrupt then reaches it once, with what it has started.
            with _hearing():
                child = subprocess.Popen(piece.command, stdout=stdout, stderr=stderr, env=environment, process_group=0)
            try:
                return child.wait(left_s)
            except subprocess.TimeoutExpired:
                return _stopped(child)
            except KeyboardInterrupt:
                _stopped(child)
                raise


def _stopped(child: subprocess.Popen[bytes]) -> int:
    """Interrupt a child, kill it if it does not mind, and say that it was not finished, or its status if it was."""
    with _deaf():
        _signal(child, signal.SIGINT)
        try:
            status = child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            status = -1
        _signal(child, signal.SIGKILL)  # what it has started may live on
        child.wait()
    return 0 if status == 0 else UNFINISHED_STATUS


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


@contextlib.contextmanager
def _hearing() -> Iterator[None]:
    """What a shell begins in the background ignores SIGINT, and so would what it begins: until the end it does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """A second interrupt does not stop the stopping."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

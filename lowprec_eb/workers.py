"""Seeds side by side: each in a process of its own, reporting to one progress display."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from energy_models import LedgerRow
from lowprec_eb.compare import SeedResult, gather, record_run, run_seed
from lowprec_eb.config import Config
from lowprec_eb.lab import ArmSettings
from lowprec_eb.outcome import Outcome
from lowprec_eb.progress import ArmProgress, CompareProgress
from lowprec_eb.report import Comparison
from lowprec_eb.stage import Stage

_events: multiprocessing.Queue[tuple[str, tuple[Any, ...]]] | None = None  # a worker's end of the queue


def compare(config: Config, out: Path, progress: CompareProgress) -> Comparison:
    """Run what is not finished yet and gather the results; ``config.workers`` seeds at a time.

    Stages are kept in ``out/stages``. Killed at any moment, the same call goes on where it was.
    """
    record_run(config, out)
    workers = min(config.workers, len(config.seeds))
    if workers == 1:
        return gather(config, [run_seed(config, out, seed, progress) for seed in config.seeds])
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    with _forwarding(events, progress), ProcessPoolExecutor(workers, context, _prepare, (events,)) as pool:
        try:
            futures = [pool.submit(_work, config, out, seed) for seed in config.seeds]
            return gather(config, [future.result() for future in futures])
        except BaseException:
            # Stages are safe against a kill, so nothing is lost, and nobody waits for the other seeds.
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


@contextmanager
def _forwarding(events: Any, progress: CompareProgress) -> Iterator[None]:
    """Hand the workers' events to the display while the block runs."""
    done = threading.Event()

    def forward() -> None:
        while not (done.is_set() and events.empty()):
            try:
                name, arguments = events.get(timeout=0.1)
            except queue.Empty:
                continue
            getattr(progress, name)(*arguments)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


# ---- in a worker -------------------------------------------------------------------------------------------------


def _prepare(events: Any) -> None:
    global _events
    _events = events
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides


def _work(config: Config, out: Path, seed: int) -> SeedResult:
    return run_seed(config, out, seed, _QueueProgress())


class _QueueProgress(ArmProgress):
    """Sends every event to the parent, and ends the worker when the parent is gone."""

    def begin(self, seed: int, arm: ArmSettings) -> None:
        self._send("begin", seed, arm)

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            sys.exit("the parent process is gone")
        self._send("epoch", stage, row, energy_j)

    def end(self, outcome: Outcome) -> None:
        self._send("end", outcome)

    def _send(self, name: str, *arguments: Any) -> None:
        assert _events is not None
        _events.put((name, arguments))

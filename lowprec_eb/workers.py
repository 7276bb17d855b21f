"""Arms side by side: worker processes that report to one progress display."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from energy_models import LedgerRow
from lowprec_eb.arms import ArmSettings
from lowprec_eb.compare import ArmResult, gather, record_run, run_arm, run_folder, so_far
from lowprec_eb.config import Config
from lowprec_eb.outcome import DivergedOutcome, Outcome
from lowprec_eb.progress import CompareObserver, Label
from lowprec_eb.report import Comparison
from lowprec_eb.report.saved import save_comparison
from lowprec_eb.stage_data import Stage

_events: multiprocessing.Queue[tuple[str, tuple[Any, ...]]] | None = None  # a worker's end of the queue


def compare(config: Config, out: Path, observer: CompareObserver) -> Comparison:
    """Run what is not finished yet and gather the results; ``config.workers`` arms at a time.

    Stages are kept in ``out/stages``. Killed at any moment, the same call goes on where it was. Whenever an arm ends,
    the comparison of those that have is saved in the run's folder, so that it can be reported before all are done.
    """
    record_run(config, out)
    results: list[ArmResult] = []
    with closing(_results(config, out, observer)) as ending:
        for result in ending:
            results.append(result)
            if any(isinstance(of.outcome, Outcome) for of in results):
                save_comparison(so_far(config, results), run_folder(config, out))
    return gather(config, results)


def _results(config: Config, out: Path, observer: CompareObserver) -> Generator[ArmResult]:
    """Every arm with every seed, as they end."""
    # Neighbours in this order share no stage, so that workers rarely wait for each other's.
    jobs = [(seed, arm) for arm in config.pipelines for seed in config.seeds]
    workers = min(config.workers, len(jobs))
    if workers == 1:
        yield from (run_arm(config, out, seed, arm, observer) for seed, arm in jobs)
        return
    context = multiprocessing.get_context("spawn")
    events = context.Queue()
    with _forwarding(events, observer), ProcessPoolExecutor(workers, context, _prepare, (events,)) as pool:
        try:
            for future in as_completed([pool.submit(_work, config, out, seed, arm) for seed, arm in jobs]):
                yield future.result()
        except BaseException:
            # Stages are safe against a kill, so nothing is lost, and nobody waits for the other arms.
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


@contextmanager
def _forwarding(events: Any, observer: CompareObserver) -> Iterator[None]:
    """Hand the workers' events to the display while the block runs."""
    done = threading.Event()

    def forward() -> None:
        while not (done.is_set() and events.empty()):
            try:
                name, arguments = events.get(timeout=0.1)
            except queue.Empty:
                continue
            getattr(observer, name)(*arguments)

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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed leaves no workers behind, idle or busy; their stages are safe against that."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _work(config: Config, out: Path, seed: int, arm: ArmSettings) -> ArmResult:
    return run_arm(config, out, seed, arm, _ToParent())


class _ToParent:
    """Sends every event to the parent."""

    def begin(self, arm: Label) -> None:
        self._send("begin", arm)

    def epoch(self, arm: Label, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        self._send("epoch", arm, stage, row, energy_j)

    def end(self, arm: Label, outcome: Outcome | DivergedOutcome) -> None:
        self._send("end", arm, outcome)

    def _send(self, name: str, *arguments: Any) -> None:
        assert _events is not None
        _events.put((name, arguments))

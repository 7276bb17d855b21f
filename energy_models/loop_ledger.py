"""A ledger for any training loop: what its epochs did, counted once for each configuration and priced, and measured."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from energy_models.count_store import CountStore
from energy_models.counter import count
from energy_models.counts import OpCounts
from energy_models.energy import ModelledEnergy
from energy_models.estimate import estimate
from energy_models.ledger import Ledger, LedgerKey, LedgerRow, Phase
from energy_models.meters import MeasuredEnergy, measure
from energy_models.optimizer_counter import count_optimizer
from energy_models.profile_files import load_profile
from energy_models.profiles import HardwareProfile

Metrics = dict[str, float | str | None]
CountOf = Callable[[Any, bool], OpCounts]


class LedgerCallback:
    """Keeps a ledger of a loop: a row for each epoch and phase, with its counts, modelled and measured energy.

    ``with keeper.epoch():`` around an epoch's training, ``with keeper.epoch("eval"):`` around its evaluation; a window
    inside another one is taken out of it. Within a window every call of ``model`` is counted, with its backward pass
    where gradients are enabled, and every step of the optimizers. Each configuration (shapes and types of the inputs,
    which parameters train) is counted once, on the first batch that has it, while the meter stands still; what indices
    or masks of later batches change is not seen. After a change of precision call :meth:`recount`.

    Args:
        path: of the ledger; the counts go to the folder ``counts`` beside it, so that :func:`energy_models.reprice`
            can apply another profile. Of several ranks each writes a file of its own, ``ledger.rank1.jsonl``.
        model: what is watched; None where the loop calls :meth:`step` itself.
        optimizers: one, several or none.
        profile: a hardware profile, its name or its file.
        run, stage: of the rows' keys.
        device: that is measured, as of :func:`energy_models.measure`.
        rank: None takes that of torch.distributed, where it is in use.
        count_of: (inputs, whether gradients are enabled) -> counts, in place of counting ``model``.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module | None = None,
        optimizers: Optimizer | Sequence[Optimizer] = (),
        *,
        profile: str | Path | HardwareProfile = "45nm",
        run: str = "run",
        stage: str = "dense",
        device: Any = None,
        rank: int | None = None,
        count_of: CountOf | None = None,
    ) -> None:
        if model is None and count_of is None:
            raise ValueError("LedgerCallback: give the model that the loop calls, or count_of and call step")
        self.rank, ranks = _rank() if rank is None else (rank, 2)
        path = Path(path)
        own = path if ranks == 1 else path.with_name(f"{path.stem}.rank{self.rank}{path.suffix}")
        self.ledger, self.run, self.stage, self._device = Ledger(own), run, stage, device
        self.profile = profile if isinstance(profile, HardwareProfile) else load_profile(profile)
        self._model, self._count_of = model, count_of or self._count_model
        self.counts = CountStore(path.with_name("counts"))
        self._known: dict[Any, OpCounts] = {}
        self._priced: dict[tuple[tuple[str, int], ...], tuple[OpCounts, ModelledEnergy]] = {}
        self._open: list[_Window] = []
        self._waiting: dict[tuple[Phase, int], _Window] = {}  # inner windows of the same work are one row
        self._next: Counter[str] = Counter()
        self._hooks = [] if model is None else [model.register_forward_pre_hook(_Watch(self), with_kwargs=True)]
        stepped = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
        self._hooks += [_watch_steps(self, optimizer) for optimizer in stepped]

    @contextlib.contextmanager
    def epoch(self, phase: Phase = "train", epoch: int | None = None) -> Iterator[Metrics]:
        """A window that is written when its block ends; the block may fill the row's metrics. Nothing is written of a
        block that raises.

        Args: ``phase`` and ``epoch`` as of :meth:`begin`.
        """
        self.begin(phase, epoch)
        try:
            yield self._open[-1].metrics
        except BaseException:
            self._abandon()
            raise
        self.end()

    def begin(self, phase: Phase = "train", epoch: int | None = None) -> None:
        """Open a window of ``phase``; ``epoch`` (from 0) is the next of this phase where it is left out. A resumed loop
        gives it."""
        number = self._next[phase] if epoch is None else epoch
        LedgerKey(self.run, self.stage, phase, number, self.rank)
        if self._open:
            self._open[-1].pause()
        window = self._waiting.setdefault((phase, number), _Window(phase, number, self._device))
        self._open.append(window)
        window.resume()

    def end(self, **metrics: float | str | None) -> list[LedgerRow]:
        """Close the last window; the rows of all closed windows are written, and returned, with the outermost.

        Raises:
            RuntimeError: there is none.
        """
        if not self._open:
            raise RuntimeError("LedgerCallback: end without begin")
        window = self._open.pop()
        window.pause()
        window.metrics.update(metrics)
        self._next[window.phase] = window.epoch + 1
        if self._open:
            self._open[-1].resume()
            return []
        rows = [self._row(of) for of in self._waiting.values()]
        self._waiting.clear()
        self.ledger.extend(rows)
        return rows

    def step(self, inputs: Any, *, training: bool | None = None) -> None:
        """A pass over ``inputs``, with its backward where ``training`` (None: where gradients are enabled); a watched
        model needs none of these calls. Outside of a window nothing happens."""
        if not self._open:
            return
        backward = torch.is_grad_enabled() if training is None else training
        key = backward, _signature(inputs), self._trained()
        counts = self._counted(key, lambda: self._count_of(inputs, backward))
        self._open[-1].add(counts, samples=_samples(inputs))

    def recount(self) -> None:
        """Forget all counts: the model's precision or structure has changed."""
        self._known.clear()

    def close(self) -> None:
        """Stop watching; an open window is dropped."""
        while self._open:
            self._abandon()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _abandon(self) -> None:
        self._open.pop().pause()
        if self._open:
            self._open[-1].resume()
        else:
            self._waiting.clear()

    def _updated(self, optimizer: Optimizer) -> None:
        if self._open:
            counts = self._counted((id(optimizer), self._trained()), lambda: self._count_step(optimizer))
            self._open[-1].add(counts, steps=1)

    def _count_model(self, inputs: Any, backward: bool) -> OpCounts:
        assert self._model is not None
        return count(self._model, inputs, training=backward)

    def _count_step(self, optimizer: Optimizer) -> OpCounts:
        return count_optimizer(optimizer, model=self._model)

    def _trained(self) -> tuple[bool, ...]:
        return () if self._model is None else tuple(parameter.requires_grad for parameter in self._model.parameters())

    def _counted(self, key: Any, make: Callable[[], OpCounts]) -> OpCounts:
        if key not in self._known:
            self._open[-1].pause()
            with torch.enable_grad():
                self._known[key] = make()
            self._open[-1].resume()
        return self._known[key]

    def _row(self, window: _Window) -> LedgerRow:
        key = LedgerKey(self.run, self.stage, window.phase, window.epoch, self.rank)
        kept = self.counts.put_all(window.done.values())  # before the row that refers to them
        total, modelled = self._price(kept)
        metrics = dict(window.metrics) | {"optimizer_steps": window.steps}
        if total.uncounted:
            metrics["uncounted"] = "; ".join(total.uncounted)
        measured = [part.energy_j for part in window.measured]
        return LedgerRow.from_counts(
            replace(key, attempt=self.ledger.next_attempt(key)),
            total,
            modelled,
            samples=window.samples,
            measured_j=None if None in measured else math.fsum(filter(None, measured)),
            duration_s=math.fsum(part.duration_s for part in window.measured),
            metrics=metrics,
            profile=self.profile.name,
            kept=kept,
        )

    def _price(self, kept: dict[str, int]) -> tuple[OpCounts, ModelledEnergy]:
        """The sum of stored counts and its energy; most epochs do the same, which is priced once."""
        parts = tuple(kept.items())
        if parts not in self._priced:
            total = self.counts.total(kept)
            self._priced[parts] = (total, estimate(total, self.profile))
        return self._priced[parts]


@dataclass(eq=False)
class _Window:
    """What is done between a begin and its end, without what inner windows and counting take."""

    phase: Phase
    epoch: int
    device: Any
    samples: int = 0
    steps: int = 0
    metrics: Metrics = field(default_factory=dict)
    done: dict[int, tuple[OpCounts, int]] = field(default_factory=dict)
    measured: list[MeasuredEnergy] = field(default_factory=list)
    _meter: contextlib.ExitStack | None = None

    def add(self, counts: OpCounts, *, samples: int = 0, steps: int = 0) -> None:
        times = self.done.get(id(counts), (counts, 0))[1]
        self.done[id(counts)] = (counts, times + 1)
        self.samples, self.steps = self.samples + samples, self.steps + steps

    def resume(self) -> None:
        self._meter = contextlib.ExitStack()
        self.measured.append(self._meter.enter_context(measure(self.device)))

    def pause(self) -> None:
        assert self._meter is not None
        self._meter.close()


class _Watch:
    """A model's hook. A copy of the model, such as the one that is counted, gets one that does nothing."""

    def __init__(self, keeper: LedgerCallback | None) -> None:
        self._keeper = keeper

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._keeper is not None:
            self._keeper.step(_inputs(module, args, kwargs))

    def __deepcopy__(self, memo: Any) -> _Watch:
        return _Watch(None)

    def __reduce__(self) -> Any:
        return _Watch, (None,)


def _watch_steps(keeper: LedgerCallback, optimizer: Optimizer) -> Any:
    return optimizer.register_step_post_hook(lambda opt, args, kwargs: keeper._updated(optimizer))


def _inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As `count` takes them: positional arguments, or keyword arguments if there is any of them."""
    if not kwargs or not args:
        return kwargs or args
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _signature(inputs: Any) -> tuple[Any, ...]:
    leaves = tree_leaves(inputs)
    return tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf if _is_plain(leaf) else type(leaf)
        for leaf in leaves
    )


def _is_plain(leaf: Any) -> bool:
    return leaf is None or isinstance(leaf, bool | int | float | str)


def _samples(inputs: Any) -> int:
    """Of a batch: the first dimension of its first tensor."""
    sizes = (leaf.shape[0] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim())
    return next(sizes, 0)


def _rank() -> tuple[int, int]:
    """(rank, number of ranks)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1

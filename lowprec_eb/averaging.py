"""Weight averaging: SWALP, stochastic weight averaging and exponential moving averages, of any model in any loop.

Sources: Yang et al. 2019, "SWALP: Stochastic Weight Averaging in Low-Precision Training", algorithm 1 and section 5;
Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"; the moving average is
torch's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from lowprec_eb.formats import Format, as_format, format_name
from lowprec_eb.precision import Precision, check_choice
from lowprec_eb.precision_state import load_precision_state, precision_state
from lowprec_eb.quantize import ROUNDINGS, Rounding, draw_seeds, quantize_
from lowprec_eb.quantize.random_bits import derive_seed

Kind = Literal["swalp", "swa", "ema"]
Unit = Literal["epoch", "step"]


@dataclass(frozen=True)
class AveragingMoments:
    """At which steps of a stage (counted from 1) its weights are taken: every ``interval`` after the first ``waits``.

    The weights that averaging starts from are not among them, as in SWALP's public code; algorithm 1 counts them in.
    """

    waits: int
    interval: int

    def is_due(self, step: int) -> bool:
        """Whether the weights after this step are taken."""
        return step > self.waits and (step - self.waits) % self.interval == 0

    def count(self, steps: int) -> int:
        """How often they are taken in the first ``steps``."""
        return max(0, steps - self.waits) // self.interval


@dataclass(frozen=True)
class AveragingSettings:
    """What the stages that deliver a model average.

    kind: ``"swalp"``, the mean of the weights visited, which the averaged model's GEMMs read as it is kept (float32, or
    ``format``) whatever the stage's precision says of weights; ``"swa"``, the same mean, read at the stage's own
    precision; ``"ema"``, new = decay * old + (1 - decay) * weights, read at the stage's own precision.
    start: share of the schedule's epochs before the first weights are taken. interval: weights are taken after every so
    many units. decay: of ``"ema"`` alone. learning_rate: constant from ``start`` on, in place of the schedule's, as
    both papers have it; null leaves the schedule. format: that the average itself is kept in (text; SWALP, section 5);
    vectors stay in float32. rounding: to that format; an average moves by ever smaller steps, which rounding to nearest
    would drop.
    """

    kind: Kind
    start: float = 0.75
    interval: int = 1
    unit: Unit = "epoch"
    decay: float | None = None
    learning_rate: float | None = None
    format: str | None = None
    rounding: Rounding = "stochastic"

    def __post_init__(self) -> None:
        check_choice("averaging", "kind", self.kind, get_args(Kind))
        check_choice("averaging", "unit", self.unit, get_args(Unit))
        check_choice("averaging", "rounding", self.rounding, ROUNDINGS)
        if not 0 <= self.start < 1:
            raise ValueError(f"averaging: start must be a share of the epochs in [0, 1), got {self.start}")
        if self.interval < 1:
            raise ValueError(f"averaging: interval must be at least 1 {self.unit}, got {self.interval}")
        if (self.kind == "ema") != (self.decay is not None):
            wanted = "needs a decay, such as 0.999" if self.kind == "ema" else "has equal weights: leave decay out"
            raise ValueError(f"averaging: kind {self.kind!r} {wanted}, got decay {self.decay}")
        _check_decay(self.decay)
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"averaging: learning_rate must be above 0 and finite, got {self.learning_rate}")
        if self.format is not None:  # one spelling for each format, so that equal settings name one run
            object.__setattr__(self, "format", format_name(as_format(self.format)))

    @property
    def fmt(self) -> Format | None:
        """The format that the average is kept in; None is float32."""
        return None if self.format is None else as_format(self.format)

    def start_epoch(self, epochs: int) -> int:
        """The first epoch, of a schedule of so many, whose weights are taken."""
        return round(self.start * epochs)

    def moments(self, epochs: int, stage: range, steps: int) -> AveragingMoments:
        """When a stage that trains ``stage`` of the schedule's ``epochs``, with ``steps`` each, takes its weights.

        Raises:
            ValueError: it would take none.
        """
        waits = max(0, self.start_epoch(epochs) - stage.start) * steps
        found = AveragingMoments(waits, self.interval * (steps if self.unit == "epoch" else 1))
        if found.count(len(stage) * steps) == 0:
            raise ValueError(
                f"averaging: with start {self.start} (epoch {self.start_epoch(epochs)} of {epochs}) and an interval of "
                f"{self.interval} {self.unit}(s), training in epochs {stage.start} to {stage.stop - 1} takes no "
                "weights; make start or interval smaller"
            )
        return found

    def check(self, epochs: int, first: int = 0) -> None:
        """Raises ValueError as :meth:`moments`, as far as that is known without the data."""
        self.moments(epochs, range(first, epochs), 1 if self.unit == "epoch" else self.interval)

    def precision(self, trained: Precision) -> Precision:
        """What the averaged model computes in, of a stage that trains in ``trained``."""
        return _with_weight(trained, self.fmt) if self.kind == "swalp" else trained


def _with_weight(precision: Precision, fmt: Format | None) -> Precision:
    overrides = tuple((pattern, _with_weight(one, fmt)) for pattern, one in precision.overrides)
    return replace(precision, weight=fmt, overrides=overrides)


def _check_decay(decay: float | None) -> None:
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"decay must be between 0 and 1, got {decay}")


class WeightAverage:
    """An average of the weights that a model has while it is trained, kept in higher precision than theirs.

        average = lp.WeightAverage(model)
        for epoch in range(epochs):
            ...
            if epoch >= start:
                average.update(model)
        average.update_statistics(inputs)
        average.model(x)

    ``model`` is the averaged model: a copy in eval mode, its floating-point tensors in float32 at least. It computes as
    the model it was made from, a lowered one in its precision; :func:`lowprec_eb.lower` gives it another one.
    ``count`` is the number of weights that it is the average of.

    Args:
        model: plain or lowered; it is not changed.
        decay: None averages all weights alike (SWALP, SWA); a number in (0, 1) is that of an exponential moving average
            (new = decay * old + (1 - decay) * weights), which starts with the first weights.
        fmt: format that the average is rounded to after every update; None keeps it in float32.
        rounding: to that format. vectors: whether it holds for vectors (biases, normalisation parameters) too.
        seed: of stochastic rounding; None draws one from torch's default generator, if it is needed.

    Raises:
        ValueError: decay is not between 0 and 1; unknown format or rounding.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | None = None,
        *,
        fmt: Any = None,
        rounding: Rounding = "stochastic",
        vectors: bool = False,
        seed: int | None = None,
    ) -> None:
        _check_decay(decay)
        check_choice("WeightAverage", "rounding", rounding, ROUNDINGS)
        self.fmt = None if fmt is None else as_format(fmt)
        self.rounding, self.vectors, self.count = rounding, vectors, 0
        draws = self.fmt is not None and rounding == "stochastic" and seed is None
        self._seed = int(draw_seeds(1)) if draws else seed or 0
        self._move = get_swa_multi_avg_fn() if decay is None else get_ema_multi_avg_fn(decay)
        self.model = copy.deepcopy(model).eval()
        if any(t.is_floating_point() and t.element_size() < 4 for t in self.model.parameters()):
            self.model.float()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the weights of ``model`` into the average; buffers and running ranges become those of ``model``.

        Raises:
            ValueError: its parameters are not those of the model that the average was made of; nothing is changed then.
        """
        averaged, visited = [], []
        for own, new in self._pairs(model):
            if self.count and own.is_floating_point():
                averaged.append(own.detach())
                visited.append(new.detach().to(own))
            else:
                own.copy_(new)
        if averaged:
            self._move(averaged, visited, self.count)
        for buffer, new in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(new)
        load_precision_state(self.model, precision_state(model))
        self.count += 1
        self._round()

    @torch.no_grad()
    def update_statistics(self, inputs: Iterable[Any]) -> None:
        """Compute the statistics of batch normalisation anew, as the mean over ``inputs``: those of the weights that
        training visited do not fit the average (Izmailov et al. 2018, section 3.2).

        Through torch's ``update_bn``, but only batch normalisation runs as in training: dropout is off and rounding is
        to nearest, as where the statistics will be used. Does nothing to a model without batch normalisation.

        Args:
            inputs: batches; of a list or tuple the first element.

        Raises:
            ValueError: nothing was averaged yet; no batches. After any error the statistics are as they were.
        """
        if not self.count:
            raise ValueError("nothing was averaged yet: call update(model) first")
        if not self.has_statistics:
            return
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        kept = [(norm, norm.momentum, [buffer.clone() for buffer in norm.buffers()]) for norm in norms]
        passed = StatisticsPass(self.model)
        try:
            update_bn(inputs, passed)
            if not passed.passes:
                raise ValueError("no batches to take the statistics from; an iterator that was used before has none")
        except BaseException:  # torch's update_bn begins with mean 0 and variance 1, and takes nothing back
            for norm, momentum, statistics in kept:
                norm.momentum = momentum
                for buffer, old in zip(norm.buffers(), statistics, strict=True):
                    buffer.copy_(old)
            raise
        finally:
            self.model.eval()

    @property
    def has_statistics(self) -> bool:
        """Whether the model has batch normalisation, so that :meth:`update_statistics` passes its inputs through it."""
        return any(isinstance(module, _BatchNorm) for module in self.model.modules())

    def parameter_format(self, parameter: Tensor) -> Format | None:
        """The format that this parameter's average is kept in; None is float32."""
        return self.fmt if parameter.dim() >= 2 or self.vectors else None

    def _pairs(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        own, new = dict(self.model.named_parameters()), dict(model.named_parameters())
        if differing := sorted({(n, p.shape) for n, p in own.items()} ^ {(n, p.shape) for n, p in new.items()}):
            name, shape = differing[0]
            raise ValueError(
                f"the model's parameters are not those of the average, the first to differ is {name!r} of shape "
                f"{tuple(shape)}: make a new WeightAverage when the model changes"
            )
        return [(parameter, new[name]) for name, parameter in own.items()]

    def _round(self) -> None:
        for index, parameter in enumerate(self.model.parameters()):
            fmt = self.parameter_format(parameter)
            if fmt is not None and parameter.is_floating_point():
                seed = derive_seed(self._seed, self.count, index)
                quantize_(parameter.detach(), fmt, self.rounding, seed=seed)

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's tensors, its precision state and the count: a resumed average goes on bit for bit."""
        return {
            "model": dict(self.model.state_dict()),
            "precision": precision_state(self.model),
            "count": self.count,
            "seed": self._seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` of an average of the same model gave."""
        self.model.load_state_dict(state["model"])
        load_precision_state(self.model, state["precision"])
        self.count, self._seed = state["count"], state["seed"]


class StatisticsPass(nn.Module):
    """``model`` while the statistics of batch normalisation are taken: that looks at batches, all else at inference."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.passes = model, 0

    def forward(self, *inputs: Any) -> Any:
        self.passes += 1
        return self.model(*inputs)

    def train(self, mode: bool = True) -> StatisticsPass:
        self.training = mode
        self.model.eval()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                module.training = True
        return self

"""Counts of models that differ from a counted one in few modules: those alone are counted again.

A module that takes and gives tensors of the same shapes as before leaves the work of all others as it was. Counted by
itself it has the rows that it has within its model, which is checked once for modules of the same classes; where that
or the shapes do not hold, or something in it is called from elsewhere too, the whole model is counted. Not seen is a
model whose own forward reads the tensors of a module, rather than what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from energy_models import ElementOps, Gemm, OpCounts, Operand, Zeros, count
from lowprec_eb.layers import LoweredModule
from lowprec_eb.precision import Precision

_Tensors = tuple[tuple[str, tuple[tuple[int, ...], torch.dtype, bool] | None], ...]  # shape, and whether it learns
Own = tuple[type[nn.Module], Precision | None, Hashable, _Tensors]
Form = dict[str, Own]  # what decides how much each module computes, by its name
_PLAIN = (bool, int, float, str, tuple, type(None))
_LOSS = "loss"  # the layer that `count` names so
_Row = TypeVar("_Row", Gemm, ElementOps)


def form_of(model: nn.Module, *, training: bool) -> Form:
    """Classes, shapes of tensors, plain attributes and precisions; modes of parts count in ``training`` alone."""
    return {name: _own_form(module, training) for name, module in model.named_modules()}


def _own_form(module: nn.Module, training: bool) -> Own:
    plain = tuple(
        (name, repr(value))
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and (training or name != "training")
    )
    tensors = tuple(
        (name, None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.requires_grad))
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    )
    precision = module.lowering.precision if isinstance(module, LoweredModule) else None
    return type(module), precision, plain, tensors


class _Flow(NamedTuple):
    """A tensor between modules."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    wants_gradient: bool


@dataclass(frozen=True)
class _Passed:
    """What goes through a module in its one call."""

    taken: _Flow
    given: _Flow


_Call = tuple[str, _Passed | None]  # caller; None: not one tensor in and one out, or it writes into what it takes


@dataclass(frozen=True)
class _Part:
    """The module ``owner``, or ``children``, consecutive ones of it: a Sequential."""

    owner: str
    children: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.owner}.{child}" for child in self.children) or (self.owner,)

    def module(self, model: nn.Module) -> nn.Module:
        owner = model.get_submodule(self.owner)
        if not self.children:
            return owner
        found = nn.Sequential()
        for child in self.children:
            found.add_module(child, owner.get_submodule(child))
        return found

    def within(self, layer: str) -> str:
        """The name in the whole model of a layer of the part."""
        return f"{self.owner}.{layer}" if layer else self.owner

    def owns(self, layer: str) -> bool:
        return any(layer == name or layer.startswith(f"{name}.") for name in self.names)


@dataclass(frozen=True, eq=False)
class _Counted:
    form: Form
    counts: OpCounts
    passed: Mapping[str, _Passed]
    callers: Mapping[str, Sequence[str]]  # of a module, by each of its calls

    def ends(self, part: _Part) -> _Passed | None:
        """What ``part`` takes and gives; None: some of it is called from elsewhere too, or not in the order in which
        its owner has it."""
        first, last = (self.passed.get(name) for name in (part.names[0], part.names[-1]))
        in_order = not part.children or part.owner in self.passed
        if first is None or last is None or not in_order:
            return None
        inside = (by for name, by in self.callers.items() if part.owns(name) and name not in part.names)
        once = all(len(self.callers[name]) == 1 for name in part.names)
        return _Passed(first.taken, last.given) if once and all(map(part.owns, chain(*inside))) else None


class Recounting:
    """Counts models of one structure and precision on one batch, the whole of the first, of others what differs.

    Args:
        images: shape of the batch. training: forward and backward, or the forward pass in inference. loss: of the
            logits, in training.
    """

    def __init__(self, images: tuple[int, ...], training: bool, loss: Callable[[Tensor], Tensor]) -> None:
        self._images, self._training, self._loss = images, training, loss
        self._counted: list[_Counted] = []  # the first and the latest
        self._stands_alone: dict[Hashable, bool] = {}  # by the classes in a part: whether it has the rows it has inside
        self._parts: dict[Hashable, tuple[OpCounts, dict[str, _Passed]]] = {}

    def of(self, model: nn.Module, form: Form) -> OpCounts:
        """The counts of ``model``, at any values of its weights."""
        nearest = min(self._counted, key=lambda known: len(_changed(known.form, form)), default=None)
        parts = None if nearest is None else _parts(model, _changed(nearest.form, form))
        kinds: set[Hashable] = set()
        found = None
        if nearest is not None and parts is not None:
            kinds = {_kind(part, form, nearest) for part in parts}
        if nearest is not None and parts is not None and all(self._stands_alone.get(kind, True) for kind in kinds):
            found = self._with(nearest, parts, model, form)
        if found is None or not kinds <= self._stands_alone.keys():
            whole = self._whole(model, form)
            self._stands_alone |= dict.fromkeys(kinds, found is not None and found.counts == whole.counts)
            found = whole
        self._counted = [*self._counted[:1], found]
        return found.counts

    def _whole(self, model: nn.Module, form: Form) -> _Counted:
        return _Counted(form, *self._run(model, torch.empty(self._images, device="meta"), self._loss))

    def _run(
        self, model: nn.Module, example: Tensor, loss: Callable[[Tensor], Tensor]
    ) -> tuple[OpCounts, dict[str, _Passed], dict[str, list[str]]]:
        with _watching(model) as calls:
            counts = count(model, example, training=self._training, loss=loss)
        passed = {name: of[0][1] for name, of in calls.items() if len(of) == 1 and of[0][1] is not None}
        return _at_any_weights(counts), passed, {name: [by for by, _ in of] for name, of in calls.items()}

    def _with(self, known: _Counted, parts: Sequence[_Part], model: nn.Module, form: Form) -> _Counted | None:
        """The known counts with ``parts`` counted anew; None: they cannot be replaced by themselves."""
        counts, passed = known.counts, dict(known.passed)
        for part in parts:
            ends = known.ends(part)
            if ends is None or (self._training and not _learns(part, form, ends)):
                return None
            rows, inside = self._alone(part, model, form, ends.taken)
            spliced = _spliced(counts, rows, part)
            if spliced is None or inside[""].given != ends.given:
                return None
            counts = spliced
            passed = {name: of for name, of in passed.items() if not part.owns(name)}
            passed |= {part.within(name): of for name, of in inside.items() if part.owns(part.within(name))}
        return _Counted(form, counts, passed, known.callers)

    def _alone(self, part: _Part, model: nn.Module, form: Form, taken: _Flow) -> tuple[OpCounts, dict[str, _Passed]]:
        """The rows of a part by itself, and what passes its modules; equal parts are counted once."""
        key = (_shape(part, form), taken)
        if key not in self._parts:
            example = torch.empty(taken.shape, dtype=taken.dtype, device="meta", requires_grad=taken.wants_gradient)
            self._parts[key] = self._run(part.module(model), example, _any_loss)[:2]
        return self._parts[key]


def _any_loss(output: Tensor) -> Tensor:
    return output.exp().sum()  # whose gradient is a tensor of its own, as it is where other modules follow


# ---- parts -------------------------------------------------------------------------------------------------------


def _changed(one: Form, other: Form) -> list[str]:
    """Modules that differ; all of them, if the models have not the same modules."""
    if one.keys() != other.keys():
        return list(other)
    return [name for name, own in other.items() if one[name] != own]


def _parts(model: nn.Module, changed: Sequence[str]) -> list[_Part] | None:
    """What to count again where the modules ``changed`` differ; None: most of the model, or the model's own forward may
    depend on them."""
    children: dict[str, list[str]] = {}
    for name in changed:
        owner, _, child = name.rpartition(".")
        if not owner:
            return None
        children.setdefault(owner, []).append(child)
    parts = [_part(owner, model.get_submodule(owner), of) for owner, of in children.items()]
    parts = [part for part in parts if not any(other != part and other.owns(part.owner) for other in parts)]
    size = sum(1 for part in parts for _ in part.module(model).modules())
    return parts if 2 * size < sum(1 for _ in model.modules()) else None


def _part(owner: str, module: nn.Module, changed: Sequence[str]) -> _Part:
    if type(module) is not nn.Sequential:
        return _Part(owner)
    names = [name for name, _ in module.named_children()]
    places = sorted(names.index(child) for child in changed)
    return _Part(owner, tuple(names[places[0] : places[-1] + 1]))


def _shape(part: _Part, form: Form) -> Hashable:
    """What decides how much a part computes, wherever it is."""
    return tuple((name.removeprefix(part.owner), own) for name, own in form.items() if part.owns(name))


def _learns(part: _Part, form: Form, ends: _Passed) -> bool:
    """Whether a gradient goes on to what follows, as it did, and there is one to count."""
    own = any(of[2] for name, (*_, tensors) in form.items() if part.owns(name) for _, of in tensors if of is not None)
    return ends.given.wants_gradient and (own or ends.taken.wants_gradient)


def _kind(part: _Part, form: Form, known: _Counted) -> Hashable:
    """The classes of its modules, and whether what is in front of it learns."""
    first, classes = known.passed.get(part.names[0]), tuple(own[0] for name, own in form.items() if part.owns(name))
    return first is not None and first.taken.wants_gradient, classes


# ---- rows --------------------------------------------------------------------------------------------------------


def _spliced(counts: OpCounts, rows: OpCounts, part: _Part) -> OpCounts | None:
    """``counts`` with the rows of ``part`` replaced; None: where they belong is not clear."""
    gemms = _replaced(counts.gemms, rows.gemms, part)
    ops = _replaced(counts.element_ops, rows.element_ops, part)
    return None if gemms is None or ops is None else replace(counts, gemms=gemms, element_ops=ops)


def _replaced(rows: tuple[_Row, ...], alone: tuple[_Row, ...], part: _Part) -> tuple[_Row, ...] | None:
    named = [replace(row, layer=part.within(row.layer)) for row in alone if row.layer != _LOSS]
    found = list(rows)
    for direction in ("backward", "forward"):  # the last first: it moves
        places = [place for place, row in enumerate(rows) if part.owns(row.layer) and row.part == direction]
        new = [row for row in named if row.part == direction]
        if not places and not new:
            continue
        if not places or places[-1] - places[0] + 1 != len(places):
            return None
        found[places[0] : places[-1] + 1] = new
    return tuple(found)


def _at_any_weights(counts: OpCounts) -> OpCounts:
    """Without the zeros that the weights have at this moment: the next step has others, and so has a resumed run."""
    gemms = tuple(replace(g, a=_all_elements(g.a), b=_all_elements(g.b), zeros=Zeros()) for g in counts.gemms)
    return replace(counts, gemms=gemms)


def _all_elements(operand: Operand) -> Operand:
    return operand if operand.is_sparse else replace(operand, nonzeros=None)


# ---- shapes ------------------------------------------------------------------------------------------------------


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, list[_Call]]]:
    """The calls of each module while it is counted."""
    calls: dict[str, list[_Call]] = {}
    running: list[tuple[str, int | None]] = [("", None)]  # modules, with the version of what they have taken
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():

        def begin(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            running.append((name, args[0]._version if args and isinstance(args[0], Tensor) else None))

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            name, version = running.pop()
            calls.setdefault(name, []).append((running[-1][0], _passed(args, kwargs, output, version)))

        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _passed(args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, version: int | None) -> _Passed | None:
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
        return None
    return _Passed(_flow(args[0]), _flow(output)) if args[0]._version == version else None


def _flow(tensor: Tensor) -> _Flow:
    return _Flow(tuple(tensor.shape), tensor.dtype, tensor.requires_grad)

"""Counts one step of an optimizer by running the optimizer's own code on parameters without values."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer, SparseAdam
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from energy_models.counts import ElementOps, Gemm, OpCounts, Operand, quantizer_ops
from energy_models.number_formats import NumberFormat, is_fp32
from energy_models.tracing import counting, ghosts
from energy_models.tracing.call import Call, Product
from energy_models.tracing.elements import ELEMENTS, FREE
from energy_models.tracing.origins import storage_id
from energy_models.tracing.products import PRODUCTS
from energy_models.tracing.tracer import FORMAT_OF_DTYPE

FormatOf = Callable[[str, str], NumberFormat | None]

_NUMBER = torch.ops.aten._local_scalar_dense.default
_LATE = 10_000  # the step that is counted; some optimizers begin with other steps (RAdam's first five)
_ANY_RATE = 0.5  # neither 0 nor 1, which would save a multiplication in the one step that is looked at


def count_optimizer(
    optimizer: Optimizer,
    formats: FormatOf | None = None,
    *,
    model: nn.Module | None = None,
    known: MutableMapping[Any, Any] | None = None,
) -> OpCounts:
    """Counts one step over all trainable parameters, in the part "optimizer": a late step, with all state there.

    Each parameter is one row of kind "optimizer". Its arithmetic is what the optimizer's single-tensor code does under
    the settings of the parameter's group, whichever of foreach, fused and capturable the group asks for. Its traffic is
    that of one fused kernel: weight, gradient and each tensor of the state are read once, weight and state written
    once (norms and matrix products that need all elements first are taken to keep them on chip). Matrix products are
    GEMMs named "optimizer". Step counters and other single numbers are left out, and so are frozen parameters; every
    trainable parameter is taken to have a gradient.

    Args:
        formats: `formats(parameter, operand)` is what "weight", "gradient", "update" or a tensor of the state, by the
            optimizer's own key ("momentum_buffer", "exp_avg_sq"), is stored in; None for the type that the tensor has.
            Each operand with a format other than fp32 adds one quantizer pass, which has its own read and write; a
            formatted update is read back once more. Left out, an optimizer that knows the formats itself is asked
            (`stored_format(parameter, operand)` of the optimizer, around another one called `inner`).
        model: where the parameters' names come from; else the optimizer's own names, else their places.
        known: what was found for other parameters, of optimizers with the same settings; it is read and added to.

    The optimizer, its parameters, gradients and state stay as they are; its hooks are not called.

    Raises:
        ValueError: LBFGS, which evaluates the model inside its step; sparse gradients, whose work depends on the batch;
            a step that depends on values, or that touches other tensors than the optimizer's parameters.
    """
    steps = _Steps(optimizer, model, known)
    asked = steps.own_formats if formats is None else lambda place, operand: formats(place.name, operand)
    total = [_counts(place, step, asked) for place, step in steps.all()]
    return OpCounts(
        tuple(gemm for counts in total for gemm in counts.gemms),
        tuple(row for counts in total for row in counts.element_ops),
        tuple(sorted({name for counts in total for name in counts.uncounted})),
    )


def optimizer_state(optimizer: Optimizer, *, model: nn.Module | None = None) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the tensors that `optimizer` keeps for each trainable parameter, by the keys of its state.

    They need not be there yet. Single numbers are left out. Errors and names as of `count_optimizer`.
    """
    found = _Steps(optimizer, model).all()
    return {place.name: {key: tuple(kept.shape) for key, kept in step.state.items()} for place, step in found}


class _Place(NamedTuple):
    """A trainable parameter and where the optimizer has it."""

    name: str
    parameter: Tensor
    group: int


@dataclass
class _Work:
    """What one step does to one parameter, and the tensors that it keeps."""

    fp_add: int = 0
    fp_mul: int = 0
    int_add: int = 0
    products: tuple[Product, ...] = ()
    uncounted: frozenset[str] = frozenset()
    state: Mapping[str, Tensor] = field(default_factory=dict)


class _Steps:
    """The steps of an optimizer; equal parameters of a group are traced once."""

    def __init__(
        self, optimizer: Optimizer, model: nn.Module | None, known: MutableMapping[Any, Any] | None = None
    ) -> None:
        self.own_formats: Callable[[_Place, str], NumberFormat | None] = lambda place, operand: None
        stored_format = getattr(optimizer, "stored_format", None)
        if stored_format is not None:
            self.own_formats = lambda place, operand: stored_format(place.parameter, operand)
            optimizer = optimizer.inner  # type: ignore[attr-defined]
        self._optimizer, self._model = optimizer, model
        self._kind = type(optimizer).__name__
        self._check()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._real = {storage_id(p) for p in parameters} | {
            storage_id(p.grad) for p in parameters if p.grad is not None
        }
        self._known: MutableMapping[Any, _Work] = {} if known is None else known

    def all(self) -> list[tuple[_Place, _Work]]:
        with counting(), torch.random.fork_rng(devices=[]):
            return [(place, self._work(place)) for place in self._places()]

    def _check(self) -> None:
        if isinstance(self._optimizer, LBFGS):
            raise ValueError(
                f"{self._kind} evaluates the model inside its step, as often as it needs: nothing to count"
            )
        if isinstance(self._optimizer, SparseAdam):
            raise ValueError(
                f"{self._kind} works on sparse gradients, whose non-zeros depend on the batch: not counted"
            )
        modules = () if self._model is None else self._model.named_modules()
        sparse = {id(p): name for name, m in modules if getattr(m, "sparse", False) for p in m.parameters(False)}
        for place in self._places():
            grad = place.parameter.grad
            if id(place.parameter) in sparse or (grad is not None and grad.layout != torch.strided):
                raise ValueError(
                    f"parameter {place.name} has a sparse gradient, whose non-zeros depend on the batch: count a layer "
                    "made without sparse=True"
                )

    def _places(self) -> Iterator[_Place]:
        of_model = {} if self._model is None else {id(p): name for name, p in self._model.named_parameters()}
        for number, group in enumerate(self._optimizer.param_groups):
            own = group.get("param_names") or [f"{i} of group {number}" for i in range(len(group["params"]))]
            for name, parameter in zip(own, group["params"], strict=True):
                if parameter.requires_grad:
                    yield _Place(of_model.get(id(parameter), name), parameter, number)

    def _work(self, place: _Place) -> _Work:
        key = place.group, place.parameter.shape, place.parameter.dtype
        if key not in self._known:
            self._known[key] = self._traced(place)
        return self._known[key]

    def _traced(self, place: _Place) -> _Work:
        ghost, grad = (_ghost(place.parameter) for _ in range(2))
        ghost.requires_grad_().grad = grad
        twin = self._twin(ghost, self._optimizer.param_groups[place.group])
        if place.parameter in self._optimizer.state:  # an optimizer may make state in its constructor alone
            kept = self._optimizer.state[place.parameter]
            twin.state[ghost] = {key: _without_values(key, value, place.parameter) for key, value in kept.items()}
        trace = _Trace(self._real)
        try:
            with _Trace(self._real):
                twin.step()
            _move_on(twin.state[ghost])
            with trace:
                twin.step()
        except (ghosts.NeedsValues, _NotItsOwn) as error:
            raise ValueError(f"a step of {self._kind} cannot be counted for parameter {place.name}: {error}") from error
        state = {key: value for key, value in twin.state[ghost].items() if isinstance(value, ghosts.Ghost)}
        return replace(trace.work, state=state)

    def _twin(self, ghost: Tensor, group: Mapping[str, Any]) -> Optimizer:
        """The same optimizer over one ghost: fresh state, no hooks, nobody's wrapper around its step."""
        twin: Optimizer = object.__new__(type(self._optimizer))
        kept = {key: value for key, value in vars(self._optimizer).items() if key not in ("step", "zero_grad")}
        hooks: dict[str, Any] = {key: OrderedDict() for key in kept if key.endswith("_hooks")}
        plain = {key: False for key in ("foreach", "fused", "capturable", "differentiable") if key in group}
        numbers = tree_map_only(Tensor, Tensor.item, {k: v for k, v in group.items() if k != "params"})
        settings = {**numbers, **plain, "params": [ghost]} | ({"lr": _ANY_RATE} if "lr" in group else {})
        twin.__dict__ = {**kept, **hooks, "state": defaultdict(dict), "param_groups": [settings]}
        return twin


def _ghost(x: Tensor) -> ghosts.Ghost:
    # Of the CPU wherever the parameter is: what an optimizer then makes itself needs no device.
    return ghosts.Ghost(torch.empty_like(x.detach(), device="meta"), torch.device("cpu"))


def _without_values(key: str, value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    return _ghost(value) if value.dim() or (key != "step" and not parameter.dim()) else value.detach().cpu().clone()


def _move_on(state: dict[str, Any]) -> None:
    if "step" in state:
        count = state["step"]
        state["step"] = torch.full_like(count, _LATE) if isinstance(count, Tensor) else _LATE


class _NotItsOwn(RuntimeError):
    """The step works on tensors that are no ghosts of its own parameter."""


class _Trace(TorchDispatchMode):
    """Adds up what the operators do that work on ghosts; numbers about the step as a whole cost nothing."""

    def __init__(self, real: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work, self._real = _Work(), real

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        given = (*args, *named.values())
        if any(storage_id(tensor) in self._real for tensor in ghosts.tensors_of(given)):
            raise _NotItsOwn("it reaches tensors of the model past its own parameter groups; count what it wraps")
        if (
            func is torch.ops.aten._local_scalar_dense.default
            and args[0].is_floating_point()
            and ghosts.has_ghost(args)
        ):
            return 0.5  # a norm, which scales the step and decides nothing (Adafactor)
        result = ghosts.run(func, args, named)
        if ghosts.has_ghost(given) and func is not torch.ops.prim.device.default:
            self._see(Call.of(func, args, named, result))
        return result

    def _see(self, call: Call) -> None:
        if call.op in PRODUCTS:
            for work in PRODUCTS[call.op](call):
                if isinstance(work, ElementOps):
                    self._add(work)
                elif work.k == 1:  # an outer product sums nothing
                    self.work.fp_mul += work.batch * work.m * work.n
                else:
                    self.work.products += (work,)
        elif call.op in ELEMENTS:
            self._add(ELEMENTS[call.op](call))
        elif call.op not in FREE:
            self.work.uncounted |= {call.op.replace("::", ".")}

    def _add(self, work: ElementOps | None) -> None:
        if work is not None:
            self.work.fp_add += work.fp_add
            self.work.fp_mul += work.fp_mul
            self.work.int_add += work.int_add


def _counts(place: _Place, work: _Work, formats: Callable[[_Place, str], NumberFormat | None]) -> OpCounts:
    parameter, elements = place.parameter, place.parameter.numel()
    rows: list[ElementOps] = []
    stored: dict[str, int] = {}
    for operand, tensor in {"weight": parameter, "gradient": parameter, "update": parameter, **work.state}.items():
        fmt, shape = formats(place, operand), tuple(tensor.shape)
        if fmt is not None:
            stored[operand] = fmt.storage_bits(shape)
            if not is_fp32(fmt):
                rows.append(quantizer_ops(place.name, math.prod(shape), stored[operand], part="optimizer"))
        elif operand != "update":  # made and used in one kernel, unless it is rounded between
            stored[operand] = tensor.numel() * tensor.element_size() * 8
    read = sum(stored.values())
    written = read - stored["gradient"] - stored.get("update", 0)
    step = ElementOps("optimizer", place.name, elements, work.fp_add, work.fp_mul, work.int_add, read, written)
    rows.append(replace(step, part="optimizer"))
    gemms = tuple(_gemm(place.name, product) for product in work.products)
    return OpCounts(gemms, tuple(rows), tuple(f"{place.name}: {op}" for op in sorted(work.uncounted)))


def _gemm(name: str, product: Product) -> Gemm:
    def operand(side: Any) -> Operand:
        fmt = FORMAT_OF_DTYPE.get(side.dtype)
        if fmt is None:
            raise ValueError(f"parameter {name}, optimizer GEMM: no number format is known for {side.dtype}")
        return Operand("state", tuple(side.shape), product.k, fmt)

    result: Any = product.result
    shape = product.batch, product.m, product.n, product.k
    return Gemm(
        name,
        "optimizer",
        *shape,
        operand(product.a),
        operand(product.b),
        result.numel(),
        result_bits=result.element_size() * 8,
    )

"""Lowering: put low precision into a model that somebody else wrote, and take it out again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList
from torch.overrides import TorchFunctionMode

from lowprec_eb.interception import PRODUCTS, name_of
from lowprec_eb.layers import NORMALIZATIONS, LoweredModule, lowered_class, plain_class
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.scope import Scope

if TYPE_CHECKING:
    from rich.table import Table

# Layers that multiply, with all their subclasses; other modules need only own a matrix to be taken for one.
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    nn.Embedding,
    nn.MultiheadAttention,
)
_NOT_LOWERED: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (NORMALIZATIONS, "has no GEMM (Precision.normalization rounds its result)"),
    ((nn.RNNBase, nn.RNNCellBase), "runs in torch's fused kernels"),
    ((nn.Bilinear, nn.EmbeddingBag), "has no low-precision version"),
)
# In eval mode torch's fused path reads the weights inside these without calling the layers, unless it is intercepted.
_FAST_PATHS = (nn.TransformerEncoderLayer, nn.TransformerEncoder)
_FULL = Precision(name="fp32")
_DOES_NOT = "owns a matrix, but its own forward does not multiply"


@dataclass(frozen=True)
class Lowered:
    """One module that now computes in low precision."""

    name: str
    layer: str
    precision: Precision


@dataclass(frozen=True)
class Skipped:
    """One module that was left as it is, and why; ``multiplies``: it has products in full precision, None: it may."""

    name: str
    reason: str
    multiplies: bool | None


@dataclass(frozen=True)
class LoweringReport:
    """What :func:`lower` did: every module with parameters of its own is in exactly one of the lists.

    functional: modules whose own calls of torch's products (``F.linear``, ``torch.matmul``, ...) are lowered too.
    """

    lowered: tuple[Lowered, ...]
    skipped: tuple[Skipped, ...]
    functional: tuple[Lowered, ...] = ()

    def rows(self) -> list[dict[str, str]]:
        """One row a module, as plain data: name, layer, what happened, and how or why."""
        done = [("lowered", self.lowered), ("functional calls lowered", self.functional)]
        rows = [
            {"name": item.name, "layer": item.layer, "status": status, "detail": repr(item.precision)}
            for status, items in done
            for item in items
        ]
        return rows + [{"name": i.name, "layer": "", "status": "skipped", "detail": i.reason} for i in self.skipped]

    def table(self) -> Table:
        """The rows for a terminal."""
        from rich.table import Table  # 20 ms that importing the package need not take
        from rich.text import Text

        labels = self._labels()
        table = Table("name", "layer", "status", "detail", title="Lowering")
        for row in self.rows():
            detail = labels.get(row["detail"], row["detail"])
            cells = row["name"] or "(model)", row["layer"], row["status"], detail
            table.add_row(*map(Text, cells))  # patterns of overrides would be taken for markup
        table.caption = Text("\n".join(f"{label}: {precision}" for precision, label in labels.items()))
        table.caption_justify = "left"
        return table

    def __str__(self) -> str:
        """One line a module, then what each precision is."""
        labels, lines = self._labels(), []
        for row in self.rows():
            detail = labels.get(row["detail"], row["detail"])
            what = f"{row['layer']} -> {detail}" if row["layer"] else f"skipped, {detail}"
            lines.append(f"{row['name'] or '(model)'}: {what}")
        return "\n".join([*lines, *(f"{label}: {precision}" for precision, label in labels.items())])

    def _labels(self) -> dict[str, str]:
        """A short name for each precision's ``repr``; those that share a name are numbered."""
        distinct = dict.fromkeys(item.precision for item in (*self.lowered, *self.functional))
        names = [precision.name for precision in distinct]
        return {
            repr(precision): name if names.count(name) == 1 else f"{name} #{place + 1}"
            for place, (precision, name) in enumerate(zip(distinct, names, strict=True))
        }


def lower(
    model: nn.Module,
    precision: str | Precision,
    *,
    also: Sequence[type[nn.Module]] = (),
    functional: bool = False,
    strict: bool = False,
    example_inputs: Sequence[Any] | Mapping[str, Any] | Tensor | None = None,
) -> LoweringReport:
    """Make the products of ``model``'s layers compute in ``precision``, in place. Calling it again replaces.

    Lowered are torch's linear, convolution, transposed convolution, embedding and attention layers, their subclasses,
    and every other module without children that owns a matrix. Inside their forward, each call of torch's own products
    is computed with rounded operands. Parameters, buffers, state_dict keys, hooks and module names stay as they are.

    Args:
        also: further classes whose forward multiplies.
        functional: also lower the products that other modules call themselves, as attention written with
            ``F.scaled_dot_product_attention`` does. All of them: exempt what must stay exact (rotary embeddings, say)
            by an override.
        strict: raise if a module is skipped that multiplies, or may.
        example_inputs: a batch to run the model on once, in eval mode, to see which products are still computed in
            full precision; without it such calls outside of layers are not known.

    Raises:
        ValueError: ``precision`` is unknown; nothing was lowered; ``strict`` and something was skipped. The model is
            then as :func:`raise_` leaves it.
    """
    recipe = named_precision(precision)
    raise_(model)
    try:
        report = _lower(model, recipe, tuple(also), functional)
        if example_inputs is not None:
            report = _with_calls(report, _calls_in_full_precision(model, example_inputs))
        if strict:
            _refuse_skipped(report)
    except BaseException:
        raise_(model)
        raise
    return report


def _lower(model: nn.Module, recipe: Precision, also: tuple[type[nn.Module], ...], functional: bool) -> LoweringReport:
    inside = _names_inside(model)
    modules = {name: module for name, module in model.named_modules() if name not in inside}
    reasons = {name: found for name, m in modules.items() if (found := _reason_to_skip(name, m, also)) is not None}
    layers = [name for name, m in modules.items() if name not in reasons and _multiplies(m, also)]
    if not layers and not functional:
        raise ValueError(f"nothing to lower in {type(model).__name__}: no layer that multiplies among its modules")
    lowered, calls = [], []
    for name, module in modules.items():
        types = [cls.__name__ for cls in type(module).__mro__]
        edge = {"first": bool(layers) and name == layers[0], "last": bool(layers) and name == layers[-1]}
        chosen = recipe.of_layer(name, types=types, **edge)
        entry = Lowered(name, type(module).__name__, chosen)
        if name in layers:
            lowered.append(_scoped(module, entry))
        elif isinstance(module, NORMALIZATIONS) and chosen.normalization is not None:
            reasons.pop(name, None)
            lowered.append(_scoped(module, entry))
        elif functional and not _is_torchs_own(module) and _may_call_products(module, reasons.get(name)):
            reasons.pop(name, None)
            calls.append(_scoped(module, entry))
        elif isinstance(module, (*_FAST_PATHS, ParametrizationList)) or (functional and name in reasons):
            _scoped(module, Lowered(name, type(module).__name__, _FULL))
    return LoweringReport(tuple(lowered), tuple(reasons.values()), tuple(calls))


def _names_inside(model: nn.Module) -> set[str]:
    """Modules that are parts of a layer: their parameters are used without calling them, or compute a weight."""
    inside = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.MultiheadAttention, ParametrizationList)):
            inside |= {f"{name}.{child}".lstrip(".") for child, _ in module.named_modules() if child}
    return inside


def _scoped(module: nn.Module, entry: Lowered) -> Lowered:
    lowered = lowered_class(type(module))
    setattr(module, "__class__", lowered)  # noqa: B010 - mypy reads the plain assignment as a narrowing
    module.lowering = Scope(entry.name, entry.precision)  # type: ignore[assignment]
    return entry


def _multiplies(module: nn.Module, also: tuple[type[nn.Module], ...]) -> bool:
    if isinstance(module, (*LAYERS, *also)):
        return True
    if isinstance(module, (ParametrizationList, nn.ParameterList, nn.ParameterDict)) or next(module.children(), None):
        return False
    return any(p.dim() >= 2 for p in module.parameters(recurse=False))


def _may_call_products(module: nn.Module, reason: Skipped | None) -> bool:
    """Whether its forward may multiply by calls of its own, whatever parameters it has besides."""
    return reason is None or not (reason.multiplies or isinstance(module, NORMALIZATIONS))


def _is_torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _reason_to_skip(name: str, module: nn.Module, also: tuple[type[nn.Module], ...]) -> Skipped | None:
    """Why a module with parameters stays as it is; None when it is lowered or has no parameters of its own."""
    kind, own = type(module).__name__, list(module.parameters(recurse=False))
    if not own or isinstance(module, ParametrizationList):
        return None
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return Skipped(name, f"{kind} has no parameters yet: run a batch through the model first", True)
    for types, reason in _NOT_LOWERED:
        if isinstance(module, types):
            return Skipped(name, f"{kind} {reason}: stays in full precision", types is not NORMALIZATIONS)
    if isinstance(module, nn.Embedding) and (module.sparse or module.max_norm is not None):
        return Skipped(name, f"{kind} has sparse gradients or max_norm: stays in full precision", True)
    if _multiplies(module, also):
        return None
    if all(p.dim() < 2 for p in own):
        return Skipped(name, f"{kind} has no GEMM of its own: stays in full precision", False)
    return Skipped(name, f"{kind} owns a matrix and has layers inside: also=[{kind}] lowers its own products", None)


def raise_(model: nn.Module) -> nn.Module:
    """Undo :func:`lower`, in place: the plain modules again, with the trained values. Returns ``model``.

    Raises:
        ValueError: a lowered module's class was changed since (by a parametrization); nothing is undone then.
    """
    lowered = [(module, plain_class(type(module))) for module in model.modules() if isinstance(module, LoweredModule)]
    for module, plain in lowered:
        del module.lowering
        setattr(module, "__class__", plain)  # noqa: B010 - as above
    return model


# ---- products outside of layers -----------------------------------------------------------------------------------


class _Watch(TorchFunctionMode):
    """Records products that no lowered module computes, with the innermost module that calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = [""]
        self.found: dict[tuple[str, str], None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            self.found[self.inside[-1], name_of(func)] = None
        return func(*args, **(kwargs or {}))


def _calls_in_full_precision(model: nn.Module, example_inputs: Any) -> list[tuple[str, str]]:
    watch = _Watch()
    with _eval_mode(model), _hooked(model, watch), torch.random.fork_rng(), torch.no_grad(), watch:
        if isinstance(example_inputs, Mapping):
            model(**example_inputs)
        else:
            model(*((example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs))
    return list(watch.found)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _hooked(model: nn.Module, watch: _Watch) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: watch.inside.append(name)))
        handles.append(module.register_forward_hook(lambda *_: watch.inside.pop() and None, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_calls(report: LoweringReport, calls: list[tuple[str, str]]) -> LoweringReport:
    """The report with what a run has shown: who multiplies in full precision, and who does not after all."""
    seen: dict[str, list[str]] = {}
    for name, function in calls:
        seen.setdefault(name, []).append(function)
    skipped = []
    for item in report.skipped:
        if item.name not in seen:
            skipped.append(Skipped(item.name, _DOES_NOT, False) if item.multiplies is None else item)
    for name, functions in seen.items():
        skipped.append(Skipped(name, f"calls {', '.join(functions)} itself: functional=True lowers that", True))
    return replace(report, skipped=tuple(skipped))


def _refuse_skipped(report: LoweringReport) -> None:
    left = [item for item in report.skipped if item.multiplies is not False]
    if left:
        lines = "\n".join(f"  {item.name or '(model)'}: {item.reason}" for item in left)
        raise ValueError(f"strict: {len(left)} modules that multiply would stay in full precision:\n{lines}")

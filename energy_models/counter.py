"""Counts a model's training step by running it on the meta device and watching the aten operators that it calls.

A layer is found by the span of autograd sequence numbers that its forward used: a backward node carries the number of
the forward operator it belongs to, and that holds for custom autograd functions too. An operand is known to be a weight
by its storage, which views share and quantizers hand on. So the count does not depend on how a layer is written: a
simulated low-precision layer has the same three GEMMs as a plain one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from energy_models.counts import (
    FP32,
    FP32_BITS,
    ElementOps,
    FormatSpec,
    Gemm,
    GemmName,
    NumberFormat,
    OpCounts,
    Operand,
    OperandName,
    PrecisionLike,
    quantizer_ops,
)
from energy_models.element_formulas import FORMULAS, FREE, Call, float_bits, moved_bits

QUANTIZERS = frozenset({"lowprec_eb::quantize"})
# Operators whose result is their input in another place or type: a copied weight is still a weight.
COPIES = frozenset({"aten::clone", "aten::_to_copy"})
# The two factors of the matrix products, by argument name.
FACTORS = {
    "aten::mm": ("self", "mat2"),
    "aten::addmm": ("mat1", "mat2"),
    "aten::bmm": ("self", "mat2"),
    "aten::baddbmm": ("batch1", "batch2"),
}
LOSS_LAYER = "loss"

FORMAT_OF_DTYPE: dict[torch.dtype, NumberFormat] = {
    torch.float32: FP32,
    torch.float64: FormatSpec("float", bits=64, exponent_bits=11, mantissa_bits=52),
    torch.float16: FormatSpec("float", bits=16, exponent_bits=5, mantissa_bits=10),
    torch.bfloat16: FormatSpec("float", bits=16, exponent_bits=8, mantissa_bits=7),
}


def count(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    precision: PrecisionLike | None = None,
    training: bool = True,
    loss: Callable[[Any], Tensor] | None = None,
) -> OpCounts:
    """Counts one step of `model` on inputs shaped like `example_inputs` (the batch size counts, the values do not).

    training: forward and backward in train() mode; otherwise the forward alone in eval() mode, without gradients.
    loss: output -> scalar, counted under the layer name "loss"; it runs on the meta device, so targets must be made
        there (`torch.zeros(n, dtype=torch.long, device=output.device)`). Without it the backward starts from the sum
        of the output, which is not counted.
    precision: operand formats; None takes those of a lowered model's layers (`operand_format(gemm, operand)`), and the
        tensor's own type for other layers. Given, the result is `count(...).at(precision)`.

    The model, its gradients, buffers and mode, and torch's random state stay as they are; no memory is allocated for
    values. A frozen parameter has no grad_weight and a layer with nothing to train before it no grad_input, because
    autograd does not compute them. Rows of a flattened matrix count as samples for linear layers.

    Raises ValueError if training and nothing requires a gradient, or if the output needs a `loss` to become a scalar.
    """
    twin = _on_meta(model)
    twin.train(training)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    meta_inputs = [torch.empty_like(x, device="meta") for x in inputs]
    tracer = _Tracer(twin)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training), tracer.hooked():
        with tracer:
            output = twin(*meta_inputs)
        if training:
            total = _scalar(tracer, output, loss)
            with tracer:
                total.backward()
    counts = tracer.counts()
    return counts if precision is None else counts.at(precision)


def _on_meta(model: nn.Module) -> nn.Module:
    # deepcopy takes whatever the memo already holds for an object's id: giving it meta tensors first copies the
    # structure and no values. Tensors kept as plain attributes are replaced too.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values(), *module.__dict__.values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _meta_like(tensor)
    return copy.deepcopy(model, memo)


def _meta_like(tensor: Tensor) -> Tensor:
    twin = torch.empty_like(tensor, device="meta", requires_grad=False)
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _scalar(tracer: _Tracer, output: Any, loss: Callable[[Any], Tensor] | None) -> Tensor:
    if loss is not None:
        with tracer, tracer.inside(LOSS_LAYER):
            total = loss(output)
    elif isinstance(output, Tensor):
        total = output.sum()
    else:
        raise ValueError(f"the model returns {type(output).__name__}, not a tensor: pass loss= (output -> scalar)")
    if not total.requires_grad:
        raise ValueError("nothing in the model requires a gradient: unfreeze a parameter, or count with training=False")
    return total


@dataclass(frozen=True)
class _Origin:
    """What is known of a storage: a weight (of which layer, with how many dimension-0 slices) or an activation."""

    name: OperandName
    layer: str = ""
    slices: int = 0


@dataclass(frozen=True)
class _Span:
    """Autograd sequence numbers, first to last (excluded), that were given out inside a layer's forward."""

    first: int
    last: int
    layer: str


def _sequence_number() -> int:
    return torch._C._autograd._get_sequence_nr()


class _Tracer(TorchDispatchMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._modules = dict(model.named_modules())
        self._stack: list[tuple[str, int]] = []
        self._spans: list[_Span] = []
        self._origins: dict[int, _Origin] = {}
        self._quantized: dict[int, int] = {}  # storage -> index of its row in _element_ops
        self._kept: list[torch.UntypedStorage] = []  # keeps ids unique: a freed storage's id may come again
        self._gemms: list[Gemm] = []
        self._element_ops: list[ElementOps] = []
        self._uncounted: set[str] = set()
        self._handlers: dict[str, Callable[[Call], None]] = {
            "aten::convolution": self._convolution,
            "aten::convolution_backward": self._convolution_backward,
            **dict.fromkeys(FACTORS, self._matmul),
            **dict.fromkeys(QUANTIZERS, self._quantizer),
        }
        for name, parameter in model.named_parameters():
            slices = parameter.shape[0] if parameter.dim() else 1
            self._origins[self._storage(parameter)] = _Origin("weight", name.rpartition(".")[0], slices)

    def counts(self) -> OpCounts:
        return OpCounts(tuple(self._gemms), tuple(self._element_ops), tuple(sorted(self._uncounted)))

    # Which layer is running

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(lambda *_, layer=name: self._enter(layer), prepend=True))
            handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def inside(self, layer: str) -> Iterator[None]:
        self._enter(layer)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, layer: str) -> None:
        self._stack.append((layer, _sequence_number()))

    def _leave(self) -> None:
        layer, first = self._stack.pop()
        self._spans.append(_Span(first, _sequence_number(), layer))  # inner layers leave first, so they are found first

    def _in_backward(self) -> bool:
        # A forward inside the backward is a recomputation (checkpointing), and its module hooks fill the stack.
        return torch._C._current_graph_task_id() != -1 and not self._stack

    def _layer(self, fallback: str = "") -> str:
        if self._stack:
            return self._stack[-1][0]
        node: Any = torch._C._current_autograd_node()
        number = -1 if node is None else node._sequence_nr()
        return next((span.layer for span in self._spans if span.first <= number < span.last), fallback)

    # What is running

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        call = Call.of(func._schema, args, kwargs or {}, result)
        self._handlers.get(call.op, self._element)(call)
        return result

    def _storage(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._kept.append(storage)
        return cast(int, storage._cdata)

    def _origin(self, tensor: Tensor) -> _Origin | None:
        return self._origins.get(tensor.untyped_storage()._cdata)

    def _inherit(self, source: Tensor, result: Tensor) -> None:
        origin = self._origin(source)
        if origin is not None:
            self._origins[self._storage(result)] = origin

    def _element(self, call: Call) -> None:
        if call.op in COPIES:
            self._inherit(call.args["self"], call.results[0])
        name = call.op.removesuffix("_")  # in place is the same work
        if name in FREE:
            return
        if name not in FORMULAS:
            self._leave_out(call.op)
            return
        if name == "aten::add" and self._is_bias(call.args["other"]):
            self._bias(call.results[0].numel(), float_bits([call.args["other"]]), 0)
            return
        work = FORMULAS[name](call)
        if work is None:
            return
        if work.kind == "elementwise":
            self._inherit_weight(call)
        read_bits, write_bits = moved_bits(name, call)
        self._row(replace(work, read_bits=read_bits, write_bits=write_bits))

    def _inherit_weight(self, call: Call) -> None:
        # A masked or scaled weight is still the weight that a GEMM reads.
        result = call.results[0]
        for value in call.args.values():
            origin = self._origin(value) if isinstance(value, Tensor) and value.shape == result.shape else None
            if origin is not None and origin.name == "weight":
                self._inherit(value, result)

    def _is_bias(self, value: Any) -> bool:
        bias = getattr(self._modules.get(self._layer()), "bias", None)
        if not isinstance(bias, Tensor) or not isinstance(value, Tensor):
            return False
        return bool(value.untyped_storage()._cdata == bias.untyped_storage()._cdata)

    def _row(self, work: ElementOps) -> None:
        layer = self._layer()
        bias = getattr(self._modules.get(layer), "bias", None)
        if work.kind == "sum" and self._in_backward() and work.write_bits == float_bits([bias]):
            work = replace(work, kind="bias")
        self._element_ops.append(replace(work, layer=layer))

    def _leave_out(self, op: str) -> None:
        self._uncounted.add(f"{self._layer() or '(model)'}: {op.replace('::', '.')}")

    def _quantizer(self, call: Call) -> None:
        source, result = call.args["x"], call.results[0]
        self._inherit(source, result)
        self._quantized[self._storage(result)] = len(self._element_ops)
        # Stored as 32 bits until a GEMM reads it: what follows otherwise (BN, ReLU) takes 32 bits in.
        origin = self._origin(source)
        layer = self._layer(fallback=origin.layer if origin else "")
        self._element_ops.append(quantizer_ops(layer, result.numel(), FP32_BITS * result.numel()))

    # GEMMs

    def _operand(
        self, name: OperandName, tensor: Tensor, layer: str, gemm: GemmName, k_run: int, slices: int | None = None
    ) -> Operand:
        own = getattr(self._modules.get(layer), "operand_format", None)
        fmt = (own(gemm, name) if own is not None else None) or FORMAT_OF_DTYPE.get(tensor.dtype)
        if fmt is None:
            raise ValueError(f"layer {layer!r}, {gemm} GEMM, {name}: no number format is known for {tensor.dtype}")
        slices = tensor.shape[0] if slices is None else slices
        operand = Operand(name, tensor.numel(), slices, max(1, k_run), fmt)
        row = self._quantized.get(tensor.untyped_storage()._cdata)
        if row is not None:
            self._element_ops[row] = replace(self._element_ops[row], write_bits=operand.stored_bits)
        return operand

    def _bias(self, elements: int, read_bits: int, write_bits: int) -> None:
        self._row(ElementOps("bias", "", elements, fp_add=elements, read_bits=read_bits, write_bits=write_bits))

    def _convolution(self, call: Call) -> None:
        x, weight, out, groups = call.args["input"], call.args["weight"], call.results[0], call.args["groups"]
        if call.args["transposed"]:
            self._leave_out(call.op + " (transposed)")
            return
        layer, positions = self._layer(), out.shape[0] * math.prod(out.shape[2:])
        k = math.prod(weight.shape[1:])
        self._origins.setdefault(self._storage(x), _Origin("activation"))
        a = self._operand("activation", x, layer, "output", k)
        b = self._operand("weight", weight, layer, "output", k)
        n = weight.shape[0] // groups
        self._gemms.append(Gemm(layer, "output", groups, positions, n, k, a, b, out.numel()))
        if call.args["bias"] is not None:  # added in the accumulator, so the result is written once, by the GEMM
            self._bias(out.numel(), float_bits([call.args["bias"]]), 0)

    def _convolution_backward(self, call: Call) -> None:
        args = call.args
        error, x, weight, groups = args["grad_output"], args["input"], args["weight"], args["groups"]
        if args["transposed"]:
            self._leave_out(call.op + " (transposed)")
            return
        origin = self._origin(weight)
        layer = self._layer(fallback=origin.layer if origin else "")
        images, per_image = error.shape[0], math.prod(error.shape[2:])
        out_channels, in_per_group, kernel = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
        need_input, need_weight, need_bias = args["output_mask"]
        if need_input:
            # A stride spreads one error over fewer taps per input pixel: the run of one output channel is that shorter.
            k, taps = out_channels // groups * kernel, kernel // math.prod(args["stride"])
            a = self._operand("error", error, layer, "grad_input", k)
            b = self._operand("weight", weight, layer, "grad_input", taps)
            shape = (groups, images * per_image, in_per_group, k)
            self._gemms.append(Gemm(layer, "grad_input", *shape, a, b, x.numel()))
        if need_weight:
            a = self._operand("error", error, layer, "grad_weight", per_image)
            b = self._operand("activation", x, layer, "grad_weight", per_image)
            shape = (groups, out_channels // groups, in_per_group * kernel, images * per_image)
            self._gemms.append(Gemm(layer, "grad_weight", *shape, a, b, weight.numel()))
        if need_bias:
            self._bias(error.numel(), float_bits([error]), FP32_BITS * out_channels)

    def _matmul(self, call: Call) -> None:
        """mm (m, k) @ (k, n) or bmm with a batch dimension before."""
        a, b = (call.args[name] for name in FACTORS[call.op])
        origins = (self._origin(a), self._origin(b))
        gemm, names = self._roles(a, b, origins)
        weight = next((o for o in origins if o is not None and o.name == "weight"), None)
        layer = self._layer(fallback=weight.layer if weight else "")
        batch, (m, k), n = math.prod(a.shape[:-2]), a.shape[-2:], b.shape[-1]
        sides = []
        for name, tensor, origin, along_k in zip(names, (a, b), origins, (-1, -2), strict=True):
            run, slices = _slices_of_matrix(tensor, along_k, name, gemm)
            if name == "weight" and origin is not None:
                slices = origin.slices
            sides.append(self._operand(name, tensor, layer, gemm, run, slices))
        out = call.results[0]
        self._gemms.append(Gemm(layer, gemm, batch, m, n, k, sides[0], sides[1], out.numel()))
        if call.op in ("aten::addmm", "aten::baddbmm"):
            self._bias(out.numel(), float_bits([call.args["self"]]), 0)

    def _roles(
        self, a: Tensor, b: Tensor, origins: tuple[_Origin | None, _Origin | None]
    ) -> tuple[GemmName, tuple[OperandName, OperandName]]:
        known = tuple(o.name if o is not None else None for o in origins)
        rest: OperandName = "error" if self._in_backward() else "activation"
        if rest == "activation":
            for tensor in (a, b):
                self._origins.setdefault(self._storage(tensor), _Origin("activation"))
        names: tuple[OperandName, OperandName] = (known[0] or rest, known[1] or rest)
        if rest == "activation":
            return "output", names
        if "weight" in known or a.dim() == 3:  # attention's backward products have no weight and are grad_input
            return "grad_input", names
        # Neither was seen in the forward (a layer that transforms what it saves): torch's own order is error first.
        return "grad_weight", names if "activation" in known else ("error", "activation")


def _slices_of_matrix(tensor: Tensor, along_k: int, name: str, gemm: str) -> tuple[int, int]:
    """(products along k that share a dimension-0 slice, number of slices) of a GEMM's operand.

    Dimension 0 is the batch of a 3-d operand, the sample (row) of an activation or error and the slower dimension of a
    weight; k runs over the rows only in grad_weight, or for a weight whose slower dimension it is.
    """
    k, other = tensor.shape[along_k], tensor.shape[-3 - along_k]
    if tensor.dim() == 3:
        return k, tensor.shape[0]
    k_is_faster = tensor.stride(along_k) < tensor.stride(-3 - along_k)
    k_inside = k_is_faster if name == "weight" else gemm != "grad_weight"
    return (k, other) if k_inside else (1, k)

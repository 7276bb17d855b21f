"""Sees every operator that a model's step calls and writes down what it does.

The count does not depend on how a layer is written: an operand is known to be a weight by its storage, which views
share and operators hand on, so a simulated low-precision layer has the same three GEMMs as a plain one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from energy_models.counts import ElementOps, Gemm, GemmName, OpCounts, Operand, OperandName, Part, quantizer_ops
from energy_models.number_formats import BF16, FP16, FP32, FP32_BITS, FP64, FormatSpec, NumberFormat
from energy_models.tracing import ghosts
from energy_models.tracing.call import Call, Formula, Product, float_bits
from energy_models.tracing.elements import ELEMENTS, FILLS, FREE, moved_bits
from energy_models.tracing.formulas import checked
from energy_models.tracing.layers import Layers
from energy_models.tracing.origins import ACTIVATION, Origin, Origins, storage_id
from energy_models.tracing.products import PRODUCTS
from energy_models.tracing.stand_in import work_ops
from energy_models.tracing.zeros import KnownZeros

QUANTIZERS = frozenset({"lowprec_eb::quantize"})
STAND_IN = "energy_models::work"
_FP8 = {"float8_e4m3fn": (4, 3), "float8_e4m3fnuz": (4, 3), "float8_e5m2": (5, 2), "float8_e5m2fnuz": (5, 2)}
FORMAT_OF_DTYPE: dict[torch.dtype, NumberFormat] = {
    torch.float32: FP32,
    torch.float64: FP64,
    torch.float16: FP16,
    torch.bfloat16: BF16,
    **{
        getattr(torch, f"int{bits}"): FormatSpec("integer", bits=bits, exponent_bits=0, mantissa_bits=bits - 1)
        for bits in (8, 16, 32, 64)
    },
    torch.uint8: FormatSpec("integer", bits=8, exponent_bits=0, mantissa_bits=8),
    **{getattr(torch, name): FormatSpec("float", 1 + sum(bits), *bits) for name, bits in _FP8.items()},
}


Side = Tensor | tuple[int, ...]


class Tracer(TorchDispatchMode):
    """Counts what runs while it is entered.

    values: keep real tensors; otherwise ghosts stand in for all that is made from a ghost.
    zeros: what is known of the model's zeros, already read.
    original: what `model` is a copy of.
    """

    def __init__(
        self,
        model: nn.Module,
        formulas: Mapping[str, Formula],
        values: bool,
        zeros: KnownZeros,
        original: nn.Module,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self.origins, self._zeros = Layers(model), Origins(), zeros
        self._run = (lambda func, args, kwargs: func(*args, **kwargs)) if values else ghosts.run
        self._formulas = {**PRODUCTS, **checked(formulas)}
        self._quantized: dict[int, int] = {}  # storage -> index of its row in _element_ops
        self._gemms: list[Gemm] = []
        self._element_ops: list[ElementOps] = []
        self._uncounted: set[str] = set()
        self._borrowed: list[tuple[Tensor, Tensor | None]] = []  # parameters of others with their gradients
        for name, module in self.layers.modules.items():
            for parameter in module.parameters(recurse=False):
                if self.origins.of(parameter) is None:
                    self.origins.set(parameter, Origin("weight", name, tuple(parameter.shape)))

        modules = original.named_modules()
        lowered = [(name, module) for name, module in modules if hasattr(module, "operand_format")]
        self._lowered = {id(p): name for name, module in lowered for p in module.parameters(recurse=False)}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # what is counted is not compiled, and importing the compiler takes a second

    def counts(self) -> OpCounts:
        """What was seen so far."""
        return OpCounts(self._zeros.counted(self._gemms), tuple(self._element_ops), tuple(sorted(self._uncounted)))

    @contextmanager
    def borrowing(self) -> Iterator[None]:
        """While entered, parameters that no module of the model owns may be met; their gradients come back after."""
        try:
            yield
        finally:
            for parameter, gradient in self._borrowed:
                parameter.grad = gradient
            self._borrowed.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:
            return ghosts.run(func, args, {})
        try:
            result = self._run(func, args, dict(kwargs or {}))
        except ghosts.NeedsValues as error:
            raise ValueError(
                f"layer {self.layers.current() or '(model)'!r} calls {func}, which cannot run on tensors without "
                f"values ({error}): values=True counts a real run on the values of the inputs; an operator of your own "
                "needs torch.library.register_fake"
            ) from error
        except RuntimeError as error:
            error.add_note(f"This happened while layer {self.layers.current() or '(model)'!r} was counted, in {func}.")
            raise
        call = Call.of(func, args, kwargs or {}, result)
        self._see(call)
        return result

    def _see(self, call: Call) -> None:
        sources = [] if call.op in FILLS else call.tensors
        self._borrow(sources)
        products: list[tuple[int, Product]] = []
        if call.op in QUANTIZERS:
            self._quantizer(call)
        elif call.op in self._formulas:
            products = self._products(list(self._formulas[call.op](call)))
        else:
            self._element(call)
        self._zeros.see(call, [] if call.results and _parts(call.results[0]) > 1 else products)  # of real numbers alone
        backward = self.layers.in_backward
        read = {side.name for place, _ in products for side in (self._gemms[place].a, self._gemms[place].b)}
        if not backward and ("activation" in read or _selects(sources)):
            sources = []
            for result in call.results:
                self.origins.set(result, ACTIVATION)
        self.origins.hand_on(sources, call.results, backward)

    def _borrow(self, tensors: Sequence[Tensor]) -> None:
        """Take parameters that are met for the first time for weights: a list holds them, a hook or the loss."""
        for tensor in tensors:
            if self.origins.of(tensor) is None and isinstance(tensor, nn.Parameter):
                if id(tensor) in self._lowered:
                    raise ValueError(
                        f"layer {self._lowered[id(tensor)]!r} is called by a hook or function that holds it, which the "
                        "copy that is counted cannot change, so its precision is not seen: look the layer up in forward"
                    )
                self.origins.set(tensor, Origin("weight", self.layers.current(), tuple(tensor.shape)))
                self._borrowed.append((tensor, tensor.grad))
                tensor.grad = None

    # Element operations

    def _element(self, call: Call) -> None:
        if call.op in FREE:
            return
        formula = ELEMENTS.get(call.op) or (work_ops if call.op == STAND_IN else None)
        if formula is None:
            self._uncounted.add(f"{self.layers.current() or '(model)'}: {call.op.replace('::', '.')}")
            return
        if call.op == "aten::add" and self._is_bias(call.args["other"]):
            read_bits = float_bits([call.args["other"]])
            elements = call.results[0].numel()
            self._row(ElementOps("bias", "", elements, fp_add=elements, read_bits=read_bits))
            return
        work = formula(call)
        if work is not None:
            read_bits, write_bits = moved_bits(call)
            kind = "bias" if work.kind == "sum" and self._is_summed_to_bias(call.results[0]) else work.kind
            self._row(replace(work, kind=kind, read_bits=read_bits, write_bits=write_bits))

    @property
    def _bias(self) -> Any:
        return getattr(self.layers.modules.get(self.layers.current()), "bias", None)

    def _is_summed_to_bias(self, result: Tensor) -> bool:
        bias = self._bias
        return self.layers.in_backward and isinstance(bias, Tensor) and bias.numel() == result.numel()

    def _is_bias(self, value: Any) -> bool:
        bias = self._bias
        if not isinstance(bias, Tensor) or not isinstance(value, Tensor):
            return False
        return bool(value.untyped_storage()._cdata == bias.untyped_storage()._cdata)

    def _row(self, work: ElementOps) -> None:
        self._element_ops.append(replace(work, layer=self.layers.current(), part=self._part))

    @property
    def _part(self) -> Part:
        return "backward" if self.layers.in_backward else "forward"

    def _quantizer(self, call: Call) -> None:
        source, result = call.args["x"], call.results[0]
        self._quantized[storage_id(result)] = len(self._element_ops)
        self.origins.keep(result)
        # Stored as 32 bits until a GEMM reads it: what follows otherwise (BN, ReLU) takes 32 bits in.
        origin = self.origins.of(source)
        layer = self.layers.current(fallback=origin.layer if origin else "")
        elements = result.numel()
        self._element_ops.append(quantizer_ops(layer, elements, FP32_BITS * elements, part=self._part))

    # GEMMs

    def _products(self, works: Sequence[Product | ElementOps]) -> list[tuple[int, Product]]:
        """All that one operator does: its products are one GEMM of the layer. Their places among the GEMMs."""
        first = len(self._gemms)
        names = {work: self._names(work) for work in works if isinstance(work, Product)}
        gemm = self._gemm_name({name for pair in names.values() for name in pair})
        for work in works:
            if isinstance(work, Product):
                self._product(work, work.gemm or gemm, names[work])
            else:
                self._row(work)
        return list(enumerate(names, start=first))

    def _product(self, product: Product, gemm: GemmName, names: tuple[OperandName, OperandName]) -> None:
        weight = next((o for o in map(self._origin, (product.a, product.b)) if o is not None and o.layer), None)
        layer = self.layers.current(fallback=weight.layer if weight else "")
        sides = zip(names, (product.a, product.b), product.runs, (-1, -2), strict=True)
        a, b = (self._operand(name, tensor, layer, gemm, run, along_k) for name, tensor, run, along_k in sides)
        result, width = _result(product.result)
        # Of complex numbers as real ones: (m, 2k) by (2k, 2n), 4 MACs for each complex one.
        parts = max(map(_parts, (product.a, product.b)))
        shape = product.batch, product.m, product.n * parts, product.k * parts
        accumulator = self._format(layer, gemm, "accumulator") or FP32
        self._gemms.append(Gemm(layer, gemm, *shape, a, b, result, 1, width, accumulator, product.zeros))
        if gemm == "output":
            read = [(name, x) for name, x in zip(names, (product.a, product.b), strict=True) if isinstance(x, Tensor)]
            self.layers.multiplied(set(names), {storage_id(x) for name, x in read if name == "activation"})
            self._are_read(product)

    def _are_read(self, product: Product) -> None:
        for tensor in (product.a, product.b):
            if isinstance(tensor, Tensor) and self.origins.of(tensor) is None:
                self.origins.set(tensor, ACTIVATION)

    def _origin(self, side: Side) -> Origin | None:
        return self.origins.of(side) if isinstance(side, Tensor) else None

    def _names(self, product: Product) -> tuple[OperandName, OperandName]:
        first, second = (
            given or self._name(side) for given, side in zip(product.names, (product.a, product.b), strict=True)
        )
        if product.names == (None, None) and first == second == "weight" and not self.layers.in_backward:
            return self._one_is_data(product)
        return first, second

    def _one_is_data(self, product: Product) -> tuple[OperandName, OperandName]:
        """Of two weights one is data if the running layer owns the other alone: a learned query, a latent, a prompt."""
        layer = self.layers.current()
        owners = [origin.layer for origin in map(self._origin, (product.a, product.b)) if origin is not None]
        outside = [owner != layer and not owner.startswith(f"{layer}." if layer else "") for owner in owners]
        if outside == [True, False] and owners[1] == layer:
            return "activation", "weight"
        return ("weight", "activation") if outside == [False, True] and owners[0] == layer else ("weight", "weight")

    def _name(self, side: Side) -> OperandName:
        origin = self._origin(side)
        if isinstance(side, Tensor) and self.layers.in_backward and self.layers.was_data(storage_id(side)):
            return "activation"
        if origin is not None:
            return origin.name
        is_data = not isinstance(side, Tensor) or side.layout != torch.strided
        return "activation" if is_data or not self.layers.in_backward else "error"

    def _gemm_name(self, names: set[OperandName]) -> GemmName:
        if not self.layers.in_backward:
            return "output"
        # Attention's products have no weight, and their gradients are grad_input.
        return "grad_weight" if "weight" not in names and self.layers.was_product_with_weight() else "grad_input"

    def _format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        own = getattr(self.layers.modules.get(layer), "operand_format", None)
        return None if own is None else own(gemm, operand)

    def _operand(
        self,
        name: OperandName,
        side: Side,
        layer: str,
        gemm: GemmName,
        run: int | None,
        along_k: int,
    ) -> Operand:
        own = self._format(layer, gemm, name)
        if not isinstance(side, Tensor):
            return Operand(name, side, run or side[along_k], own or FP32, on_chip=True)
        fmt = own or FORMAT_OF_DTYPE.get(side.dtype.to_real() if side.is_complex() else side.dtype)
        if fmt is None:
            raise ValueError(f"layer {layer!r}, {gemm} GEMM, {name}: no number format is known for {side.dtype}")
        matrix_run, shape = (run, tuple(side.shape)) if run else matrix_as_stored(side, along_k, name, gemm)
        origin = self.origins.of(side)
        if name == "weight" and origin is not None and math.prod(origin.shape) == side.numel():
            shape = origin.shape
        parts = _parts(side)
        stored = _sparsity(side) or {"nonzeros": self._zeros.nonzeros(side) if parts == 1 else None}
        shape = (*shape, parts) if parts > 1 else shape
        operand = Operand(name, shape, max(1, matrix_run or 1) * parts, fmt, **stored)
        row = self._quantized.get(storage_id(side))
        if row is not None:
            self._element_ops[row] = replace(self._element_ops[row], write_bits=operand.stored_bits)
        return operand


def _selects(sources: Sequence[Tensor]) -> bool:
    """What indices select, as from an embedding, is data, whatever it was selected from."""
    return any(source.dtype in (torch.int64, torch.int32) and source.dim() for source in sources)


def _result(result: Side) -> tuple[int, int]:
    """(elements that are written, bits of one)."""
    if not isinstance(result, Tensor):
        return 0, FP32_BITS
    parts = _parts(result)
    return result.numel() * parts, result.element_size() * 8 // parts


def _parts(side: Side) -> int:
    """Real numbers in one."""
    return 2 if isinstance(side, Tensor) and side.is_complex() else 1


def _sparsity(x: Tensor) -> dict[str, Any]:
    if x.layout == torch.strided:
        return {}
    if x.layout == torch.sparse_coo:
        indices = [x._indices()]
    elif x.layout in (torch.sparse_csr, torch.sparse_bsr):
        indices = [x.crow_indices(), x.col_indices()]
    else:
        indices = [x.ccol_indices(), x.row_indices()]
    values = x._values() if x.layout == torch.sparse_coo else x.values()
    bits = sum(index.numel() * index.element_size() * 8 for index in indices)
    return {"nonzeros": values.numel() * _parts(values), "is_sparse": True, "index_bits": bits}


def matrix_as_stored(tensor: Tensor, along_k: int, name: str, gemm: str) -> tuple[int, tuple[int, ...]]:
    """(products along k that share a dimension-0 slice, shape as stored) of a product's operand.

    Dimension 0 is the batch of a 3-d operand, the sample (row) of an activation or error and the slower dimension of a
    weight; k runs over the rows only in grad_weight, or for a weight whose slower dimension it is.
    """
    if tensor.dim() != 2 or tensor.layout != torch.strided:
        return tensor.shape[along_k if tensor.dim() > 1 else -1], tuple(tensor.shape)
    k, other = tensor.shape[along_k], tensor.shape[-3 - along_k]
    k_is_faster = tensor.stride(along_k) < tensor.stride(-3 - along_k)
    k_inside = k_is_faster if name == "weight" else gemm != "grad_weight"
    return (k, (other, k)) if k_inside else (1, (k, other))

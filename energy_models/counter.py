"""Counts a model's training step by running it without values and watching the operators that it calls."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from energy_models.compat import Compat, kept_as
from energy_models.counts import ElementOps, OpCounts, PrecisionLike
from energy_models.number_formats import FP32_BITS
from energy_models.tracing import counting, ghosts
from energy_models.tracing.call import Formula
from energy_models.tracing.origins import ACTIVATION
from energy_models.tracing.tracer import Tracer
from energy_models.tracing.zeros import KnownZeros

LOSS_LAYER = "loss"


def count(
    model: nn.Module,
    example_inputs: Any,
    precision: PrecisionLike | None = None,
    training: bool = True,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    strict: bool = False,
    formulas: Mapping[str, Formula] | None = None,
    accumulation_steps: int = 1,
    values: bool = False,
    compat: Compat | None = None,
) -> OpCounts:
    """Counts one step of `model` on inputs shaped like `example_inputs`.

    Args:
        example_inputs: a tensor, a sequence of positional arguments or a mapping of keyword arguments; tensors inside
            may be nested, and on the meta device. Of floating-point inputs the shapes count; indices, lengths, masks
            and sparse tensors keep their values, since those decide how much is computed.
        precision: operand formats; None takes those of a lowered model's layers (`operand_format(gemm, operand)`), and
            the tensor's own type for other layers. Given, the result is `count(...).at(precision)`.
        training: forward and backward; a model in eval() mode is put into train() mode first, while parts of a model
            in train() mode that are in eval() mode stay so. Otherwise the forward alone in eval() mode.
        loss: output -> scalar, counted under the layer name "loss". It sees tensors without values, so targets must be
            made there (`torch.zeros(n, dtype=torch.long, device=output.device)`). Without it the backward starts from
            the output's `loss`, if it has one, or from the sum of its tensors, which is not counted.
        strict: raise if an operator with arithmetic has no formula, instead of listing it in `uncounted`.
        formulas: for operators that this package does not know, by name ("torchvision::deform_conv2d"): what a
            :class:`Call` does, as `Product`s and `ElementOps`. One for a known operator takes the place of its own.
            docs/counting_reference.md has an example.
        accumulation_steps: forward and backward passes whose gradients are summed; each is on `example_inputs`.
        compat: book the work as a paper does: "early_bird" or "fractrain", see `energy_models.compat`.
        values: run a copy of the model for real, for models whose shapes depend on computed numbers.

    Zeros of real parameters and buffers are read once and followed: `Gemm.zeros` and :func:`energy_models.sparsity` say
    which MACs they make needless. Zeros are those of the values now, so a tensor that starts at zero (the last gamma of
    a residual branch, the second factor of LoRA) counts as zero until it is trained.

    A compiled model is counted as it was written. Run it under `torch.autocast` to count what autocast casts. The
    model, its gradients, buffers and mode, and torch's random state stay as they are. A frozen parameter has no
    grad_weight and a layer with nothing to train before it no grad_input, because autograd does not compute them.

    Raises:
        TypeError: `model` is no module.
        ValueError: training and nothing requires a gradient; an operator's result depends on values; a sparse tensor is
            on the meta device; `strict` and something has no formula; a formula is wrong; `accumulation_steps` below 1;
            an unknown `compat`; the model cannot be copied, is TorchScript, or has parameters that are not plain
            tensors (sharded, quantized, without a shape yet); a hook or function that holds a lowered layer calls that
            instead of its copy.
    """
    if accumulation_steps < 1:
        raise ValueError(f"accumulation_steps must be 1 or more, got {accumulation_steps}")
    if compat is not None:
        kept_as(OpCounts(), compat)  # refuses an unknown name before the model runs
    # Inside a compiled program nothing of the count is compiled.
    traced = torch.compiler.disable(_traced) if "torch._dynamo" in sys.modules else _traced
    counts = traced(model, example_inputs, training, loss, formulas or {}, accumulation_steps, values)
    if strict and counts.uncounted:
        raise ValueError("strict: no formula for " + "; ".join(counts.uncounted) + ". Give one by formulas=")
    counts = counts if precision is None else counts.at(precision)
    return counts if compat is None else kept_as(counts, compat)


def _traced(
    model: nn.Module,
    example_inputs: Any,
    training: bool,
    loss: Callable[[Any], Tensor] | None,
    formulas: Mapping[str, Formula],
    accumulation_steps: int,
    values: bool,
) -> OpCounts:
    with _undisturbed():
        zeros, plain = KnownZeros(), _plain(model)
        twin, inputs = _twin(plain, example_inputs, values, zeros)
        _set_mode(twin, training)
        tracer = Tracer(twin, formulas, values, zeros, original=plain)
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tracer.origins.set(tensor, ACTIVATION)
        held = _buffers_kept(plain, values)
        with held, torch.set_grad_enabled(training), tracer.layers.followed(), tracer.borrowing():
            with tracer:
                output = twin(**inputs) if isinstance(inputs, Mapping) else twin(*inputs)
            zeros.need(tree_leaves(output))
            if training:
                total = _scalar(tracer, output, loss)
                with tracer, _without_autocast():
                    total.backward()
                zeros.need(parameter.grad for parameter in twin.parameters())
        return _accumulated(tracer.counts(), twin, accumulation_steps)


def _twin(plain: nn.Module, example_inputs: Any, values: bool, zeros: KnownZeros) -> tuple[nn.Module, Any]:
    """A copy of the model and of its inputs, without values unless those are wanted; `zeros` reads the model's own."""
    if example_inputs is None:
        raise ValueError("example_inputs must be a tensor, a sequence of arguments or a mapping of them, not None")
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    inputs = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)
    _need_nonzeros(plain, inputs)
    if values:
        twin, inputs = _copied(plain, _refused(plain)), tree_map_only(Tensor, _clone, inputs)
        for name, tensor in _own_tensors(twin):
            zeros.read(name, tensor, tensor)
        return twin, inputs
    device = _device(plain, inputs)
    # deepcopy takes whatever the memo already holds for an object's id: giving it ghosts first copies the structure and
    # no values. Tensors kept as plain attributes are replaced too.
    memo: dict[int, Any] = {}
    for name, tensor in _own_tensors(plain):
        if id(tensor) not in memo:
            memo[id(tensor)] = _clone(tensor) if _keeps_values(tensor) else ghosts.ghost_of(tensor, device)
            zeros.read(name, tensor, memo[id(tensor)])
    bare = tree_map_only(Tensor, lambda x: x.clone() if _keeps_values(x) else ghosts.ghost_of(x, device), inputs)
    return _copied(plain, memo), bare


def _plain(model: nn.Module) -> nn.Module:
    """The module that a compiled or data-parallel one wraps.

    Raises:
        TypeError: it is no module.
        ValueError: its tensors or its forward are not plain PyTorch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    plain: nn.Module = getattr(model, "_orig_mod", model)
    plain = plain.module if isinstance(plain, wrappers) else plain
    for name, module in plain.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or '(model)'} is compiled by TorchScript: count the module that it was made from")
    for name, parameter in plain.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise ValueError(f"parameter {name} has no shape yet: run a batch through the model first")
        known = isinstance(parameter, FakeTensor) or type(parameter).__torch_dispatch__ is Tensor.__torch_dispatch__
        if not known:
            kind = type(parameter).__name__
            raise ValueError(f"parameter {name} is a {kind}, which computes by itself: count the plain model instead")
    return plain


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(
            f"a count works on a copy of the model, and {type(model).__name__} cannot be deep-copied: {error}"
        ) from error


def _need_nonzeros(model: nn.Module, inputs: Any) -> None:
    named = (*_own_tensors(model), *(("an input", x) for x in tree_leaves(inputs) if isinstance(x, Tensor)))
    for name, tensor in named:
        if tensor.is_meta and tensor.layout != torch.strided:
            raise ValueError(
                f"{name} is sparse and on the meta device, where its non-zeros are not known: give it on the CPU"
            )


def _refused(model: nn.Module) -> dict[int, Any]:
    """What deepcopy refuses: pruned weights (computed, and kept as attributes) and sparse tensors."""
    refused = (x for _, x in _own_tensors(model) if not x.is_leaf or x.layout != torch.strided)
    return {id(tensor): _clone(tensor) for tensor in refused}


def _clone(x: Tensor) -> Tensor:
    clone = x.detach().clone().requires_grad_(x.requires_grad and x.is_leaf)
    return nn.Parameter(clone, x.requires_grad) if isinstance(x, nn.Parameter) else clone


def _own_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain attributes of all modules, by the names that they have there."""
    for module in model.modules():
        for name, value in (*module._parameters.items(), *module._buffers.items(), *module.__dict__.items()):
            if isinstance(value, Tensor):
                yield name, value


def _keeps_values(x: Tensor) -> bool:
    has_none = x.is_meta or isinstance(x, FakeTensor)
    return x.layout != torch.strided or not (has_none or x.is_floating_point() or x.is_complex())


def _device(model: nn.Module, inputs: Any) -> torch.device:
    """The device that tensors on the meta device stand for: that of any tensor that is elsewhere."""
    tensors = (*model.parameters(), *model.buffers(), *tree_leaves(inputs))
    devices = (tensor.device for tensor in tensors if isinstance(tensor, Tensor) and not tensor.is_meta)
    return next(devices, torch.device("cpu"))


def _set_mode(twin: nn.Module, training: bool) -> None:
    if not training:
        twin.eval()
    elif not twin.training:
        twin.train()


@contextmanager
def _buffers_kept(model: nn.Module, values: bool) -> Iterator[None]:
    """Undoes what a hook or function that holds the model itself, not its copy, writes into its buffers."""
    buffers = [b for b in model.buffers() if b.layout == torch.strided and not (b.is_meta or b.is_inference())]
    written = [b for b in buffers if not isinstance(b, FakeTensor) and (values or _keeps_values(b))]
    before = [(buffer, buffer.detach().clone()) for buffer in written]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                if not torch.equal(buffer, kept):  # batch norm writes without a new version number
                    buffer.copy_(kept)


_lock = threading.Lock()
_running = 0  # counts, in whatever threads
_settings = ExitStack()  # what the first of them changed and the last one puts back


@contextmanager
def _undisturbed() -> Iterator[None]:
    """torch as a count needs it: none of its modes around, and settings of the process as the first count found them.

    A mode (fake tensors, another counter) would see ghosts, and in inference mode autograd makes no graph.
    """
    global _running
    with _disable_current_modes(), torch.inference_mode(False):
        with _lock:
            if not _running:
                _settings.enter_context(_settled())
            _running += 1
        try:
            yield
        finally:
            with _lock:
                _running -= 1
                if not _running:
                    _settings.close()


@contextmanager
def _settled() -> Iterator[None]:
    """No fused kernels that hide their products, no compiled code, no checks for NaN, random numbers apart."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        stack.enter_context(torch.random.fork_rng(devices=list(gpus)))
        fused: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)  # their recurrent layers
        for backend in fused:
            stack.callback(setattr, backend, "enabled", backend.enabled)
            backend.enabled = False
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.autograd.set_detect_anomaly(False))
        stack.enter_context(counting())
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Backward runs outside of autocast, as torch asks for."""
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _scalar(tracer: Tracer, output: Any, loss: Callable[[Any], Tensor] | None) -> Tensor:
    if loss is not None:
        with tracer, tracer.layers.inside(LOSS_LAYER):
            total = loss(output)
    else:
        total = _own_loss(output)
    if not total.requires_grad:
        raise ValueError("nothing in the model requires a gradient: unfreeze a parameter, or count with training=False")
    return total


def _own_loss(output: Any) -> Tensor:
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor):
        return own.sum()
    tensors = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors:
        raise ValueError(f"the model returns {type(output).__name__} without tensors: pass loss= (output -> scalar)")
    wanted = [x for x in tensors if x.requires_grad] or tensors
    return reduce(torch.add, [x.sum().float() for x in wanted])


def _accumulated(counts: OpCounts, model: nn.Module, steps: int) -> OpCounts:
    """`steps` passes; from the second on, gradients are added to those of the passes before."""
    if steps == 1:
        return counts
    sizes: Sequence[tuple[str, int]] = [(n, p.numel()) for n, p in model.named_parameters() if p.grad is not None]
    rows = tuple(
        ElementOps(
            "gradient_accumulation",
            name.rpartition(".")[0],
            elements,
            fp_add=elements,
            read_bits=2 * FP32_BITS * elements,
            write_bits=FP32_BITS * elements,
            times=steps - 1,
            part="backward",
        )
        for name, elements in sizes
    )
    return counts * steps + OpCounts(element_ops=rows)

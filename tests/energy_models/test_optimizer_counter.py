"""Optimizer steps, against counts made by hand."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import energy_models as em
from energy_models import FormatSpec, NumberFormat

BFP8 = FormatSpec("block_float", bits=8, exponent_bits=0, mantissa_bits=7, scale_bits=8, block_dim=0)
DIV = ROOT = 4  # multiplications


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def per_element(counts: em.OpCounts) -> set[tuple[float, float, float, float, float]]:
    """(additions, multiplications, compares, 32-bit words read, words written) of each element; all rows are alike."""
    return {
        tuple(x / op.elements for x in (op.fp_add, op.fp_mul, op.int_add, op.read_bits / 32, op.write_bits / 32))
        for op in counts.element_ops
    }


@pytest.mark.parametrize(
    ("momentum", "dampening", "nesterov"), [(0.0, 0.0, False), (0.9, 0.0, False), (0.9, 0.1, False), (0.9, 0.0, True)]
)
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
def test_sgd(momentum: float, dampening: float, nesterov: bool, weight_decay: float) -> None:
    """g += wd*w; v = mu*v + (1-dampening)*g; g += mu*v with nesterov; w -= lr*v: 1 mul, 1 add each."""
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": weight_decay}
    counts = em.count_optimizer(optim.SGD(model().parameters(), 0.1, **options))  # type: ignore[arg-type]
    terms = 1 + bool(momentum) + bool(weight_decay) + nesterov
    dampened = bool(momentum and dampening)
    assert per_element(counts) == {(terms, terms + dampened, 0, 2 + bool(momentum), 1 + bool(momentum))}
    assert counts.element_ops_by_kind == {"optimizer": 12 + 4 + 8}
    assert {op.part for op in counts.element_ops} == {"optimizer"} and counts.gemms == counts.uncounted == ()


# Adam: m += (1-b1)*(g-m) 2 add, 1 mul; v = b2*v + (1-b2)*g*g 1 add, 3 mul; root of v, over the bias correction 1 mul,
# + eps 1 add; w += -lr * m / that 1 add, 1 mul, 1 division.
ADAM = 5, 1 + 3 + ROOT + 1 + 1 + DIV


@pytest.mark.parametrize(
    ("make", "adds", "muls", "compares", "states"),
    [
        (lambda ps: optim.Adam(ps), *ADAM, 0, 2),
        (lambda ps: optim.Adam(ps, weight_decay=0.1), ADAM[0] + 1, ADAM[1] + 1, 0, 2),  # g += wd*w
        (lambda ps: optim.Adam(ps, amsgrad=True), *ADAM, 1, 3),  # the larger v
        (lambda ps: optim.Adam(ps, maximize=True), *ADAM, 1, 2),  # a change of sign
        (lambda ps: optim.AdamW(ps), ADAM[0], ADAM[1] + 1, 0, 2),  # w *= 1 - lr*wd
        (lambda ps: optim.AdamW(ps, weight_decay=0), *ADAM, 0, 2),
        # v as Adam's; root, + eps; division
        (lambda ps: optim.RMSprop(ps), 3, 3 + ROOT + 1 + DIV, 0, 1),
        # a moving average of g, 2 add, 1 mul; v - avg^2 1 add, 1 mul
        (lambda ps: optim.RMSprop(ps, centered=True), 6, 3 + ROOT + 1 + DIV + 2, 0, 2),
        # b = mu*b + g / root; w -= lr*b
        (lambda ps: optim.RMSprop(ps, momentum=0.9), 4, 3 + ROOT + 1 + DIV + 1, 0, 2),
        # s += g*g; root, + eps; w -= lr * g / that
        (lambda ps: optim.Adagrad(ps), 3, 1 + ROOT + DIV + 1, 0, 1),
        # m, v as Adam's; m's correction 1 mul; root, + eps, reciprocal, 1 mul; w -= m * lr * that * rect 3 mul
        (lambda ps: optim.RAdam(ps), 5, 1 + 3 + 1 + ROOT + DIV + 1 + 3, 0, 2),  # other than its first five steps
        # m as Adam's; u = max(b2*u, |g| + eps); w -= lr * m / u
        (lambda ps: optim.Adamax(ps), 4, 1 + 1 + DIV + 1, 2, 2),
    ],
)
def test_adaptive(make: Callable[[Any], optim.Optimizer], adds: int, muls: int, compares: int, states: int) -> None:
    counts = em.count_optimizer(make(model().parameters()))
    assert per_element(counts) == {(adds, muls, compares, 2 + states, 1 + states)}
    assert counts.uncounted == ()


def test_muon_multiplies_matrices() -> None:
    """Each of five Newton-Schulz steps, on a wide (r, c) matrix in bfloat16: X X^T, its square, and that times X."""
    tall = nn.Linear(3, 7, bias=False)
    counts = em.count_optimizer(optim.Muon(tall.parameters(), weight_decay=0.1), model=tall)
    r, c = 3, 7
    assert counts.macs["optimizer"] == counts.total_macs == 5 * (r * r * c + r * r * r + r * r * c)
    assert {(g.layer, g.part, g.a.bits, g.b.bits, g.result_bits) for g in counts.gemms} == {
        ("weight", "optimizer", 16, 16, 16)
    }
    (row,) = counts.element_ops
    norm = r * c, r * c + ROOT
    # momentum, nesterov: 2 add, 1 mul each; norm; scaling by it; X' = a*X + B X, B = b*A + c*A A; decay; update
    assert row.fp_add == 4 * r * c + norm[0] + 5 * (r * r + r * c) + r * c
    assert row.fp_mul == 2 * r * c + norm[1] + r * c + 5 * (2 * r * r + r * c) + 2 * r * c
    assert (row.read_bits, row.write_bits) == (3 * 32 * r * c, 2 * 32 * r * c)


def test_factored_state_is_read_at_its_own_size() -> None:
    weight = nn.Parameter(torch.zeros(6, 5))
    adafactor = optim.Adafactor([weight])
    assert em.optimizer_state(adafactor) == {"0 of group 0": {"row_var": (6, 1), "col_var": (1, 5)}}
    counts = em.count_optimizer(adafactor)
    assert (counts.element_ops[0].read_bits, counts.element_ops[0].write_bits) == (32 * (60 + 11), 32 * (30 + 11))
    assert counts.gemms == counts.uncounted == ()  # an outer product sums nothing


EVERY = {
    name: kind
    for name, kind in vars(optim).items()
    if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
}


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"LBFGS", "SparseAdam"}))
def test_state_is_the_one_that_a_real_step_leaves_and_nothing_real_is_touched(name: str) -> None:
    net = model()[1:] if name == "Muon" else model()
    optimizer = EVERY[name](net.parameters(), lr=0.01)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *args: seen.append(args))
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)  # wraps `step`
    before, random = copy.deepcopy((net.state_dict(), optimizer.state_dict())), torch.get_rng_state()
    counts, state = em.count_optimizer(optimizer), em.optimizer_state(optimizer, model=net)
    after = net.state_dict(), optimizer.state_dict()
    assert str(before) == str(after) and torch.equal(random, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters()) and not seen
    assert counts.uncounted == () and counts.element_ops

    for _ in range(2):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    real = {
        parameter: {k: tuple(v.shape) for k, v in optimizer.state[p].items() if isinstance(v, Tensor) and v.dim()}
        for parameter, p in net.named_parameters()
    }
    assert state == real
    assert em.count_optimizer(optimizer) == counts  # in the middle of training


def test_what_is_fast_on_a_device_does_the_same_work() -> None:
    plain = em.count_optimizer(optim.Adam(model().parameters(), foreach=False))
    for option in ("foreach", "fused"):
        assert em.count_optimizer(optim.Adam(model().parameters(), **{option: True})) == plain  # type: ignore[arg-type]
    assert em.count_optimizer(optim.Adam(model().parameters(), lr=torch.tensor(1.0))) == plain


def test_the_learning_rate_of_the_moment_does_not_matter() -> None:
    counts = {em.count_optimizer(optim.SGD(model().parameters(), rate)).element_ops for rate in (0.0, 0.1, 1.0)}
    assert len(counts) == 1


def test_groups_have_settings_of_their_own_and_frozen_parameters_are_left_out() -> None:
    net = model()
    net[0].bias.requires_grad_(False)
    groups = [{"params": net[0].parameters(), "weight_decay": 0.1}, {"params": net[1].parameters()}]
    counts = em.count_optimizer(optim.SGD(groups, 0.1), model=net)
    assert [(op.layer, op.fp_add) for op in counts.element_ops] == [("0.weight", 24), ("1.weight", 8)]


def test_names() -> None:
    net = model()
    named = em.count_optimizer(optim.SGD(net.named_parameters(), 0.1))
    assert [op.layer for op in named.element_ops] == ["0.weight", "0.bias", "1.weight"]
    places = em.count_optimizer(optim.SGD(net.parameters(), 0.1))
    assert [op.layer for op in places.element_ops] == ["0 of group 0", "1 of group 0", "2 of group 0"]


def test_sixteen_bit_parameters_move_half_as_much() -> None:
    counts = em.count_optimizer(optim.Adam(model().bfloat16().parameters()))
    assert {(r, w) for *_, r, w in per_element(counts)} == {(2, 1.5)}


def test_single_numbers_are_parameters_too() -> None:
    counts = em.count_optimizer(optim.Adam([nn.Parameter(torch.tensor(1.0))]))
    assert per_element(counts) == {(*ADAM, 0, 4, 3)}


def test_formats() -> None:
    def formats(parameter: str, operand: str) -> NumberFormat | None:
        assert parameter == "weight"
        return None if operand == "momentum_buffer" else BFP8

    linear = nn.Linear(4, 3, bias=False)
    counts = em.count_optimizer(optim.SGD(linear.parameters(), 0.1, momentum=0.9), formats, model=linear)
    assert counts.element_ops_by_kind == {"quantizer": 3 * 12, "optimizer": 12}  # weight, gradient, update
    stored = 12 * 8 + 3 * 8
    (step,) = (op for op in counts.element_ops if op.kind == "optimizer")
    assert (step.read_bits, step.write_bits) == (3 * stored + 12 * 32, stored + 12 * 32)
    assert [op.write_bits for op in counts.element_ops if op.kind == "quantizer"] == [stored] * 3
    assert {op.part for op in counts.element_ops} == {"optimizer"}


def test_an_optimizer_step_keeps_its_bits_where_the_layers_change_theirs() -> None:
    class Everywhere:
        def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat:
            return BFP8

    tall = nn.Linear(3, 7, bias=False)
    counts = em.count_optimizer(optim.Muon(tall.parameters()))
    assert counts.at(Everywhere()) == counts


def test_a_model_of_7e9_parameters_takes_no_memory() -> None:
    with torch.device("meta"):
        net = nn.ModuleList(nn.Linear(8192, 8192, bias=False) for _ in range(100))
    counts = em.count_optimizer(optim.AdamW(net.parameters()))
    assert sum(op.elements for op in counts.element_ops) == 100 * 8192**2


class OnItsOwn(optim.Optimizer):
    """Not torch's: settings beyond the groups, an operator that has no formula, state under a name of its own."""

    def __init__(self, params: Any, wrapped: optim.Optimizer | None = None) -> None:
        super().__init__(params, {"lr": 0.1})
        self.wrapped, self.power = wrapped, 3

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.wrapped is not None:
            self.wrapped.step()
        for p in self.param_groups[0]["params"]:
            mine = self.state[p].setdefault("mine", torch.zeros_like(p))
            mine.add_(torch.special.airy_ai(p.grad)).mul_(self.power)


def test_another_optimizer() -> None:
    linear = nn.Linear(4, 3, bias=False)
    counts = em.count_optimizer(OnItsOwn(linear.parameters()), model=linear)
    assert counts.uncounted == ("weight: aten.special_airy_ai",)
    assert per_element(counts) == {(1, 1, 0, 3, 2)}


class KeepsFromTheStart(optim.Optimizer):
    """Makes its state when it is made, and only then."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"total": torch.ones(p.shape[0]), "scale": torch.ones(()), "calls": 0}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            self.state[p]["calls"] += 1
            self.state[p]["scale"].mul_(0.5)
            self.state[p]["total"].add_(p.grad.sum(1))


def test_state_that_is_there_from_the_start() -> None:
    optimizer = KeepsFromTheStart(nn.Linear(4, 3, bias=False).parameters())
    (row,) = em.count_optimizer(optimizer).element_ops
    assert (row.fp_add, row.fp_mul, row.read_bits, row.write_bits) == (12 + 3, 0, 32 * (24 + 3), 32 * (12 + 3))
    (kept,) = optimizer.state.values()
    assert kept["calls"] == 0 and kept["scale"] == 1 and torch.equal(kept["total"], torch.ones(3))


def test_one_around_another_is_refused_instead_of_stepping_it() -> None:
    linear = nn.Linear(4, 3, bias=False)
    inner = optim.SGD(linear.parameters(), 0.1)
    linear.weight.grad = torch.ones_like(linear.weight)
    before = linear.weight.detach().clone()
    with pytest.raises(ValueError, match=r"OnItsOwn.*weight.*count what it wraps"):
        em.count_optimizer(OnItsOwn(linear.parameters(), inner), model=linear)
    assert torch.equal(linear.weight, before)


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match="LBFGS"):
        em.count_optimizer(optim.LBFGS(model().parameters()))
    with pytest.raises(ValueError, match="SparseAdam"):
        em.count_optimizer(optim.SparseAdam(model().parameters()))
    table = nn.Embedding(5, 3, sparse=True)
    sgd = optim.SGD(table.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"parameter weight .*sparse=True"):
        em.count_optimizer(sgd, model=table)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse gradient"):
        em.count_optimizer(sgd)

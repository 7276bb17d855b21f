"""Training as a whole: its laws, and the memory that products borrow."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lowprec_eb as lp
from lowprec_eb.rounder import Rounder
from lowprec_eb.scratch import Scratch


class Net(nn.Module):
    """Layers of every kind that has products, normalisation and a shared activation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, groups=4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.place = nn.Embedding(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.deep(F.relu(self.norm(self.stem(x)))).flatten(2).mT
        tokens = tokens + self.place.weight[: tokens.shape[1]]
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def net(precision=None):
    torch.manual_seed(0)
    model = Net().to(memory_format=torch.channels_last)
    if precision is not None:
        lp.lower(model, precision)
    return model


def batch(seed, size=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 6, 6, generator=generator).to(memory_format=torch.channels_last)
    return x, torch.randint(5, (size,), generator=generator)


def trained(model, optimizer, steps=4):
    losses = []
    for seed in range(steps):
        torch.manual_seed(seed)
        x, y = batch(seed)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in model.parameters()])


OPTIMIZERS = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 1e-2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_in_float32_is_plain_pytorch_bit_for_bit(kind):
    plain, lowered = net(), net("fp32")
    expected = trained(plain, OPTIMIZERS[kind](plain))
    found = trained(lowered, lp.LowPrecisionOptimizer(OPTIMIZERS[kind](lowered), "fp32"))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("recipe", ["swalp8", "bfp8", "int8", "fp8", "mxfp8", "mxfp4", "int8_rowwise"])
def test_low_precision_training_follows_float32(recipe):
    """Not its bits, its course: on one batch, the loss falls about as far."""

    def last_loss(precision):
        model, (x, y) = net(precision), batch(0, 32)
        optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), precision, 0)
        for seed in range(60):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return loss.item()

    start = F.cross_entropy(net()(batch(0, 32)[0]), batch(0, 32)[1]).item()
    assert last_loss(recipe) - last_loss("fp32") < 0.35 * (start - last_loss("fp32"))


# ---- borrowed memory ---------------------------------------------------------------------------------------------


def test_results_and_gradients_share_no_memory_with_later_ones():
    model = net("bfp8")
    x, _ = batch(0)
    first = model(x)
    first.sum().backward()
    kept = [first.detach(), *(p.grad for p in model.parameters())]
    before = [part.clone() for part in kept]
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()  # leaves those tensors to whoever holds them
    model(batch(1, 9)[0]).square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, kept, strict=True)) and grads[0] is kept[1]


def test_accumulated_and_checkpointed_gradients_are_those_of_one_call_each():
    def of(x, wrap):
        model = net("bfp8")
        torch.manual_seed(5)
        (checkpoint(model, x, use_reentrant=False) if wrap else model(x)).square().sum().backward()
        return [p.grad for p in model.parameters()]

    x, _ = batch(2)
    assert all(torch.equal(a, b) for a, b in zip(of(x, False), of(x, True), strict=True))


def test_several_threads_train_at_once():
    def work(seed, found):
        model = copy.deepcopy(base)
        x, y = batch(seed, 16)
        generator = torch.Generator().manual_seed(0)
        for _ in range(8):
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad + 0 * torch.rand((), generator=generator)
        found[seed] = torch.cat([p.detach().flatten() for p in model.parameters()])

    base = net(lp.precision("fp8"))  # rounds to nearest: no random numbers are shared
    alone, together = {}, {}
    for seed in range(4):
        work(seed, alone)
    threads = [threading.Thread(target=work, args=(seed, together)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(alone[seed], together[seed]) for seed in range(4))


PACKED = ["swalp8", "bfp8", "int8", "fp8", "mxfp8", "int4"]


def kept_by(layer, x):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    return y, kept


def convolution(precision):
    layers = nn.Sequential(nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 1))  # the last one is in float32 in some recipes
    lp.lower(layers.to(memory_format=torch.channels_last), precision)
    return layers[0], torch.randn(4, 16, 6, 6).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("recipe", ["swalp8", "bfp8", "int8", "fp8", "int4"])
def test_what_8_bits_can_tell_is_kept_in_8_bits(recipe):
    layer, x = convolution(recipe)
    _, kept = kept_by(layer, x.requires_grad_())
    rounded = {"swalp8": 1, "int4": 1}.get(recipe, 2)  # these read the activation as it is
    assert sorted(str(part.dtype) for part in kept) == ["torch.float32"] * (2 - rounded) + ["torch.uint8"] * rounded


@pytest.mark.parametrize("recipe", PACKED)
def test_packed_operands_are_those_that_were_read(recipe, monkeypatch):
    """Bit for bit: the gradients are those of a run that keeps the rounded tensors."""

    def gradients():
        model, (x, y) = net(recipe), batch(0)
        torch.manual_seed(1)
        loss = F.cross_entropy(model(x.requires_grad_()), y)
        loss.backward(retain_graph=True)
        loss.backward()  # once more, on the same codes
        return [x.grad, *(p.grad for p in model.parameters())]

    found = gradients()
    monkeypatch.setattr(Rounder, "packed", lambda *_: None)
    for one, other in zip(found, gradients(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", PACKED)
def test_what_has_no_code_is_kept_as_it_is(recipe, bad, monkeypatch):
    model, (x, _) = net(recipe), batch(0)
    x[1, 2, 3, 4] = bad
    found = [p.clone() for p in torch.autograd.grad(model.stem(x).nan_to_num(0, 1, -1).sum(), model.stem.weight)]
    monkeypatch.setattr(Rounder, "packed", lambda *_: None)
    torch.manual_seed(0)
    model = net(recipe)
    expected = torch.autograd.grad(model.stem(x).nan_to_num(0, 1, -1).sum(), model.stem.weight)
    assert found[0].isnan().any() == expected[0].isnan().any()
    assert torch.equal(found[0].nan_to_num(), expected[0].nan_to_num())


def test_without_gradients_nothing_is_kept():
    layer, x = convolution("bfp8")
    layer.requires_grad_(False)
    _, kept = kept_by(layer, x)
    assert not kept
    _, kept = kept_by(layer, x.requires_grad_())
    assert {part.data_ptr() for part in kept if part.is_floating_point()} == {x.data_ptr()}  # for its shape alone


def test_scratch_memory_is_reused_by_place_and_type():
    scratch = Scratch()
    x, small = torch.randn(4, 16, 5, 5), torch.randn(3, 7)
    channels_last = x.to(memory_format=torch.channels_last)
    one = scratch.like("error", x)
    assert one.shape == x.shape and one.stride() == x.stride()
    assert scratch.like("error", small).data_ptr() == one.data_ptr()
    assert scratch.like("error", channels_last).stride() == channels_last.stride()
    assert scratch.like("first", x).data_ptr() != one.data_ptr()
    assert scratch.like("error", x.bfloat16()).dtype == torch.bfloat16
    larger = scratch.like("error", torch.randn(100, 100))
    assert scratch.like("error", x).data_ptr() == larger.data_ptr()
    for unfit in (torch.randn(4, 6)[:, ::2], torch.randn(4, 6).T, torch.empty(1 << 27).expand(2, 1 << 27)):
        assert scratch.like("error", unfit) is None
    with torch.inference_mode():
        assert not scratch.like("new", x).is_inference()
    inside = {}
    thread = threading.Thread(target=lambda: inside.update(pointer=scratch.like("error", x).data_ptr()))
    thread.start()
    thread.join()
    assert inside["pointer"] != larger.data_ptr()

"""Compaction over models that nobody here wrote (tests/zoo), in the paper's manner and with coupled groups."""

import copy
import math

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import lowprec_eb as lp
from lowprec_eb.tickets import channel_groups, plan_compaction

NO_BATCH_NORM_2D = {"lenet", "vit_multihead", "vit_by_hand", "decoder_tied", "decoder_grouped_query", "conv1d"}
CASES = [(name, True) for name in zoo.MODELS] + [(name, False) for name in zoo.MODELS if name not in NO_BATCH_NORM_2D]


def outputs(model, inputs, training):
    """In training mode dropout is left out: its random numbers would be drawn for other shapes."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    return [leaf for leaf in tree_leaves(model(inputs)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize(("name", "coupled"), CASES)
def test_compacted_logits_equal_the_masked_models(name, coupled):
    model, inputs = zoo.build(name, 0)
    groups = channel_groups(model, inputs, coupled)
    ticket = zoo.random_ticket(groups, coupled)
    before = copy.deepcopy(model.state_dict())
    small = lp.compact(model, ticket, inputs)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    masked = copy.deepcopy(model)
    ticket.apply(masked)
    for training in (False, True):
        for wanted, got in zip(outputs(masked, inputs, training), outputs(small, inputs, training), strict=True):
            scale = float(wanted.detach().abs().max())
            assert torch.allclose(wanted, got, rtol=1e-5, atol=1e-5 * scale)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_with_coupled_groups_all_that_is_dropped_is_removed(name):
    model, inputs = zoo.build(name, 0)
    groups = channel_groups(model, inputs)
    plan = plan_compaction(model, zoo.random_ticket(groups, True), inputs)
    if name == "sigmoid":  # what is dropped is 0.5 where it is read
        assert sum(plan.zeroed.values()) > 0
        return
    assert not plan.zeroed
    small, dropped = plan.apply(model), {}
    for group in groups:
        for member in group.members:
            kept = int(plan.ticket.masks[group.name][list(member.channels)].sum())
            for tensor, dim in member.tensors:
                key = member.module, tensor, dim
                dropped[key] = dropped.get(key, 0) + len(member.positions) - kept
    for (module, tensor, dim), number in dropped.items():
        before, after = (_tensor(of, module, tensor).shape[dim] for of in (model, small))
        assert after == before - number, (module, tensor)


def _tensor(model, module, name):
    found = model.get_submodule(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", ["preresnet20", "preresnet29_bottleneck"])
def test_a_pre_activation_net_keeps_its_stream_in_the_papers_manner_and_narrows_it_with_groups(name):
    model, inputs = zoo.build(name, 0)
    stream = {child: m.out_channels for child, m in model.named_modules() if child.endswith(("conv1", "conv3"))}
    for coupled in (False, True):
        small = lp.compact(model, zoo.random_ticket(channel_groups(model, inputs, coupled), coupled), inputs)
        selecting = [m for m in small.modules() if hasattr(m, "selected")]
        assert bool(selecting) != coupled
        if not coupled:
            assert all(len(m.selected) == m.num_features < m.in_channels for m in selecting)
            assert small.conv1.out_channels == stream["conv1"]
        else:
            assert small.conv1.out_channels < stream["conv1"]


@pytest.mark.parametrize("name", ["densenet", "preresnet20", "mobilenet_v3", "vit_multihead", "vit_by_hand"])
def test_a_compacted_model_is_compacted_again(name):
    model, inputs = zoo.build(name, 0)
    coupled = name in NO_BATCH_NORM_2D
    for seed in (0, 1):
        groups = channel_groups(model, inputs, coupled)
        ticket = zoo.random_ticket(groups, coupled, share=0.4, seed=seed)
        small = lp.compact(model, ticket, inputs)
        ticket.apply(model)
        for wanted, got in zip(outputs(model, inputs, False), outputs(small, inputs, False), strict=True):
            assert torch.allclose(wanted, got, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))
        model = small


def test_tied_parameters_stay_tied():
    model, inputs = zoo.build("decoder_tied", 0)
    small = lp.compact(model, zoo.random_ticket(channel_groups(model, inputs), True), inputs)
    assert small.lm_head.weight is small.wte.weight
    assert len(list(small.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("name", sorted(zoo.MODELS))
def test_a_compacted_model_exports(name):
    model, inputs = zoo.build(name, 0)
    small = lp.compact(model, zoo.random_ticket(channel_groups(model, inputs), True), inputs).eval()
    exported = torch.export.export(small, (inputs,)).module()
    for wanted, got in zip(tree_leaves(small(inputs)), tree_leaves(exported(inputs)), strict=True):
        assert torch.allclose(wanted, got, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))


def test_a_selecting_model_exports():
    model, inputs = zoo.build("preresnet20", 0)
    small = lp.compact(model, zoo.random_ticket(channel_groups(model, inputs, False), False), inputs).eval()
    assert torch.allclose(small(inputs), torch.export.export(small, (inputs,)).module()(inputs), atol=1e-5)


class Encoder(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first, dropout=0.0)
        self.embed, self.layers, self.out = nn.Linear(8, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, x, padding=None, mask=None):
        return self.out(self.layers(self.embed(x), mask=mask, src_key_padding_mask=padding))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masked", ["nothing", "padding", "later"])
@pytest.mark.parametrize("grad", [True, False])
def test_torchs_own_encoder_with_fewer_heads(batch_first, masked, grad):
    """Its fast paths, which it takes without gradients, read tensors of attention that are others now."""
    torch.manual_seed(0)
    model, x = Encoder(batch_first).eval(), torch.randn(3, 5, 8)
    inputs = x if batch_first else x.transpose(0, 1)
    ticket = zoo.random_ticket(channel_groups(model, inputs), True)
    small = lp.compact(model, ticket, inputs)
    assert {layer.self_attn.num_heads for layer in small.layers.layers} != {4}
    ticket.apply(model)
    options, seen = {}, torch.ones(3, 5, dtype=torch.bool)
    if masked == "padding":
        seen[0, 3:] = False  # what comes out there is torch's affair, and differs between its paths
        options["padding"] = ~seen
    elif masked == "later":
        options["mask"] = nn.Transformer.generate_square_subsequent_mask(5)
    with torch.set_grad_enabled(grad):
        wanted, got = model(inputs, **options), small(inputs, **options)
    if not batch_first:
        wanted, got = wanted.transpose(0, 1), got.transpose(0, 1)
    assert torch.allclose(wanted[seen], got[seen], rtol=1e-5, atol=1e-5)


def test_narrow_attention_gives_its_weights():
    model = nn.MultiheadAttention(16, 4, batch_first=True)

    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = model, nn.Linear(16, 2)

        def forward(self, x):
            return self.out(self.attention(x, x, x)[0])

    net, x = Alone().eval(), torch.randn(2, 5, 16)
    (group,) = channel_groups(net, x)
    ticket = lp.Ticket({group.name: torch.tensor([True, False, True, False])}, 0.5, 0, groups=[group])
    small = lp.compact(net, ticket, x).attention
    _, every = model(x, x, x, average_attn_weights=False)
    out, kept = small(x, x, x, average_attn_weights=False)
    assert torch.allclose(every[:, [0, 2]], kept, atol=1e-6) and out.shape == (2, 5, 16)
    assert small(x, x, x, need_weights=False)[1] is None
    assert torch.allclose(small(x, x, x, need_weights=False)[0], out, atol=1e-6)


# ---- training goes on ----------------------------------------------------------------------------------------------


def _step(model, inputs, optimizer):
    optimizer.zero_grad()
    zoo.output_loss(model(inputs)).backward()
    optimizer.step()


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, 0.01, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, 0.01),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, 0.01),
    "low_precision": lambda groups: lp.LowPrecisionOptimizer(torch.optim.SGD(groups, 0.01, momentum=0.9), "bf16", 0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["preresnet20", "vit_multihead", "decoder_tied"])
def test_an_optimizer_moves_with_its_groups_and_state(name, kind):
    model, inputs = zoo.build(name, 0)
    model.eval()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.0}, {"params": vectors, "weight_decay": 0.0, "lr": 0.003}]
    optimizer = OPTIMIZERS[kind](groups)
    scheduler = torch.optim.lr_scheduler.StepLR(getattr(optimizer, "inner", optimizer), 1, 0.1)
    for _ in range(2):
        _step(model, inputs, optimizer)
    plan = plan_compaction(model, zoo.random_ticket(channel_groups(model, inputs), True), inputs)
    small = plan.apply(model)
    state = {n: optimizer.state[p] for n, p in model.named_parameters()}
    plan.move_optimizer(optimizer, model, small)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.0003])
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(matrices), len(vectors)]
    for n, parameter in small.named_parameters():
        moved = optimizer.state[parameter]
        assert moved.keys() == state[n].keys()
        for key, value in moved.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                assert torch.equal(value, plan.select(n, state[n][key]))
    before = [p.detach().clone() for p in small.parameters()]
    _step(small, inputs, optimizer)
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


def test_the_step_after_compaction_is_the_masked_models():
    model, inputs = zoo.build("preresnet20", 0)
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    for _ in range(2):
        _step(model, inputs, optimizer)
    plan = plan_compaction(model, zoo.random_ticket(channel_groups(model, inputs), True), inputs)
    masked, small = copy.deepcopy(model), plan.apply(model)
    plan.ticket.apply(masked)
    reference = torch.optim.SGD(masked.parameters(), 0.01, momentum=0.9)
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    plan.move_optimizer(optimizer, model, small)
    _step(masked, inputs, reference)
    _step(small, inputs, optimizer)
    after = dict(masked.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.allclose(plan.select(name, after[name]), parameter, rtol=1e-4, atol=1e-6)


def test_an_optimizer_that_cannot_move_is_left_as_it_was():
    model, inputs = zoo.build("lenet", 0)
    plan = plan_compaction(model, zoo.random_ticket(channel_groups(model, inputs), True), inputs)
    small = plan.apply(model)
    stranger = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(3))], 0.1)
    with pytest.raises(ValueError, match=r"1 parameters are not of the given model \(shapes \(3,\)\)"):
        plan.move_optimizer(stranger, model, small)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    _step(model, inputs, optimizer)
    optimizer.state[model.fc1.weight]["odd"] = torch.zeros(7)
    with pytest.raises(ValueError, match=r"fc1.weight/odd: a state of shape \(7,\) cannot be cut"):
        plan.move_optimizer(optimizer, model, small)
    assert optimizer.param_groups[0]["params"][0] is next(model.parameters())
    assert model.fc1.weight in optimizer.state


# ---- what cannot be pruned ------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A network around a part that the dependency graph does not understand, and two layers that it does."""

    def __init__(self, part):
        super().__init__()
        self.part = part
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):  # (n, l, 8)
        x = self.part(x)
        return self.fc3(self.fc2(torch.relu(self.fc1(x))))


class MatmulAttention(nn.Module):
    """Attention by matrix products: torch's fused function would be asked, this is not."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (q @ k.mT / math.sqrt(4)).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.lstm = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        return self.lstm(self.before(x))[0]


class Functional(nn.Module):
    """A weight that no layer owns."""

    def __init__(self):
        super().__init__()
        self.before, self.weight = nn.Linear(8, 6), nn.Parameter(torch.randn(8, 6))

    def forward(self, x):
        return F.linear(self.before(x), self.weight)


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (MatmulAttention(), {"part.q", "part.k", "part.v"}),
        (Recurrent(), {"part.before", "part.lstm.weight_ih_l0", "part.lstm.weight_hh_l0"}),
        (Functional(), {"part.before", "part.weight"}),
        (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), {"part.0"}),
        (nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), {"part"}),
    ],
    ids=["matmul attention", "lstm", "functional weight", "layer norm", "weight norm"],
)
def test_what_cannot_be_pruned_is_listed_and_the_rest_is_pruned(part, named):
    torch.manual_seed(0)
    model, x = Odd(part), torch.randn(2, 5, 8)
    groups = channel_groups(model, x)
    assert named <= groups.unprunable.keys(), groups
    assert {"fc1", "fc2"} <= {group.name for group in groups}
    ticket = zoo.random_ticket(groups, True)
    small = lp.compact(model, ticket, x).eval()
    ticket.apply(model)
    assert torch.allclose(model.eval()(x), small(x), atol=1e-5)


def test_a_graph_that_cannot_be_read_is_an_error_that_says_so():
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Conv2d(a, b, 1) for a, b in ((3, 8), (4, 4), (8, 8)))

        def forward(self, x):
            a, b = self.one(x).chunk(2, 1)
            x = torch.cat([a, self.two(b)], 1)
            x = x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
            a, b = self.three(x).chunk(2, 1)
            return torch.cat([a, b], 1).mean((2, 3))

    model, x = Shuffle(), torch.randn(2, 3, 4, 4)
    try:
        groups = channel_groups(model, x)
    except ValueError as error:
        assert "cannot read how Shuffle couples its channels" in str(error)
    else:
        lp.compact(model, zoo.random_ticket(groups, True), x)


def test_a_layer_that_the_example_inputs_do_not_reach_keeps_its_channels():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.unused = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(4, 6)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))

    groups = channel_groups(Optional(), torch.zeros(1, 4))
    assert [group.name for group in groups] == ["fc1"] and "unused.weight" in groups.unprunable
    small = lp.compact(Optional(), zoo.random_ticket(groups, True), torch.zeros(1, 4))
    assert small.unused.out_features == 6


def test_positional_and_keyword_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x, y, scale=1.0):
            return self.c(torch.relu(self.a(x) + self.b(y)) * scale)

    model, x, y = Two(), torch.randn(2, 4), torch.randn(2, 3)
    for inputs in ((x, y), {"x": x, "y": y, "scale": 2.0}):
        (group,) = channel_groups(model, inputs)
        assert {m.module for m in group.members} == {"a", "b", "c"}
        small = lp.compact(model, zoo.random_ticket([group], True), inputs)
        assert small.c.in_features < 6


MODEL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
INPUT = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("model", "inputs", "error", "says"),
    [
        (MODEL, "abc", TypeError, "got str"),
        (MODEL, 3, TypeError, "got int"),
        (MODEL, INPUT[:0], ValueError, r"at least one example, got shapes \[\(0, 4\)\]"),
        (MODEL, {}, ValueError, "must hold tensors"),
        (lambda x: x, INPUT, TypeError, "must be an nn.Module, got function"),
        (torch.compile(MODEL), INPUT, ValueError, "model._orig_mod"),
    ],
)
def test_what_no_structure_can_be_read_off_is_refused(model, inputs, error, says):
    with pytest.raises(error, match=says):
        channel_groups(model, inputs)


def test_a_traced_model_is_refused():
    with pytest.raises(ValueError, match="scripted or traced"):
        channel_groups(torch.jit.trace(MODEL, INPUT), INPUT)

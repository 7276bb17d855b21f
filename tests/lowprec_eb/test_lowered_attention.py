"""Attention and other products that modules call themselves; which modules are lowered, and how they are chosen."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowprec_eb as lp
from lowprec_eb.precision import Precision

THROUGH = Precision("through", weight="fp32", activation="fp32", error="fp32")  # every GEMM by the engine, exactly
BFP8 = lp.precision("bfp8", rounding="nearest")


def _with_gradients(model, *inputs, **options):
    """Results, and gradients to inputs and parameters."""
    model.zero_grad()
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = model(*leaves, **options)
    results = [part for part in (found if isinstance(found, tuple) else (found,)) if part is not None]
    generator = torch.Generator().manual_seed(2)
    sum((part * torch.randn(part.shape, generator=generator)).sum() for part in results).backward()
    return [part.detach() for part in results] + [t.grad.clone() for t in (*leaves, *model.parameters())]


def _assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


# ---- nn.MultiheadAttention ----------------------------------------------------------------------------------------

LENGTH, KEYS, BATCH, HEADS, WIDTH = 3, 5, 2, 2, 8
CAUSAL = torch.ones(LENGTH, KEYS, dtype=torch.bool).triu(1)
PADDED = torch.zeros(BATCH, KEYS, dtype=torch.bool)
PADDED[1, -2:] = True
BIASED = torch.randn(LENGTH, KEYS, generator=torch.Generator().manual_seed(0))
MADE = {
    "plain": {},
    "without bias": {"bias": False},
    "kdim and vdim": {"kdim": 6, "vdim": 4},
    "kdim and vdim without bias": {"kdim": 6, "vdim": 4, "bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True},
    "bias_kv and zero_attn": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout 0": {"dropout": 0.0},
}
CALLED = {
    "weights": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "boolean mask": {"attn_mask": CAUSAL},
    "float mask": {"attn_mask": BIASED},
    "mask of each head": {"attn_mask": CAUSAL.expand(BATCH * HEADS, -1, -1)},
    "float mask of each head": {"attn_mask": BIASED * torch.arange(1.0, 1 + BATCH * HEADS)[:, None, None]},
    "padding": {"key_padding_mask": PADDED},
    "float padding": {"key_padding_mask": PADDED.float() * -3},
    "blind sample": {
        "key_padding_mask": torch.tensor([[False], [True]]).expand(-1, KEYS),
        "need_weights": False,
    },
    "padding and mask": {"key_padding_mask": PADDED, "attn_mask": CAUSAL, "need_weights": False},
    "causal hint": {"attn_mask": CAUSAL, "is_causal": True},
}


def _attention(**options):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in model.parameters():  # torch starts biases at zero
        nn.init.normal_(parameter, std=0.4)
    widths = (WIDTH, options.get("kdim", WIDTH), options.get("vdim", WIDTH))
    shapes = zip((LENGTH, KEYS, KEYS), widths, strict=True)
    return model, [torch.randn(length, BATCH, width) for length, width in shapes]


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("called", CALLED)
def test_attention_has_all_options_of_torchs(made, called):
    model, inputs = _attention(**MADE[made])
    plain = _with_gradients(model, *inputs, **CALLED[called])
    lp.lower(model, THROUGH)
    _assert_close(plain, _with_gradients(model, *inputs, **CALLED[called]))


@pytest.mark.parametrize("options", [{}, {"attn_mask": CAUSAL}, {"key_padding_mask": PADDED[1]}])
@pytest.mark.parametrize("made", MADE)
def test_attention_without_a_batch(made, options):
    model, inputs = _attention(**MADE[made])
    inputs = [x[:, 0] for x in inputs]
    plain = _with_gradients(model, *inputs, **options)
    lp.lower(model, THROUGH)
    _assert_close(plain, _with_gradients(model, *inputs, **options))


@pytest.mark.parametrize("made", ["plain", "without bias", "kdim and vdim"])
def test_attention_with_a_causal_hint_and_no_weights(made):
    """Not with appended keys: of them torch's own hint hides what its mask shows."""
    options = {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}
    model, inputs = _attention(**MADE[made])
    plain = _with_gradients(model, *inputs, **options)
    lp.lower(model, THROUGH)
    _assert_close(plain, _with_gradients(model, *inputs, **options))
    with pytest.raises(RuntimeError, match="hint about attn_mask"):
        model(*inputs, is_causal=True, need_weights=False)


def test_attention_with_dropout_drops_as_torchs_does():
    model, inputs = _attention(dropout=0.5)
    torch.manual_seed(5)
    plain = _with_gradients(model, *inputs)
    lp.lower(model, THROUGH)
    torch.manual_seed(5)
    _assert_close(plain, _with_gradients(model, *inputs))
    _assert_close([model.eval()(*inputs)[0]], [lp.raise_(model)(*inputs)[0]])


def test_attention_rounds_the_operands_of_all_its_products():
    """Against the products written down: projections, scores, mixed values, output projection."""
    weight, activation = lp.Int(4), lp.Int(5)
    model, inputs = _attention()
    plain = model(*inputs)[0]
    lp.lower(model, Precision(weight=weight, activation=activation))

    def q(x):
        return lp.quantize(x, activation)

    with torch.no_grad():
        parts = zip(inputs, model.in_proj_weight.chunk(3), model.in_proj_bias.chunk(3), strict=True)
        heads = [
            F.linear(q(x), lp.quantize(w, weight), b).unflatten(-1, (HEADS, -1)).permute(1, 2, 0, 3)
            for x, w, b in parts
        ]
        scores = (q(heads[0] / 2) @ q(heads[1]).mT).softmax(-1)
        mixed = (q(scores) @ q(heads[2])).permute(2, 0, 1, 3).flatten(2)
        expected = F.linear(q(mixed), lp.quantize(model.out_proj.weight, weight), model.out_proj.bias)
        found = model(*inputs)[0]
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, plain, atol=1e-3)


# ---- torch's encoder and its fast path ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_encoders_fast_path_is_the_plain_model_where_nothing_is_lost(masked, norm_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = torch.randn(BATCH, KEYS, 8), PADDED if masked else None
    seen = ~PADDED if masked else torch.ones_like(PADDED)  # what stands at padding is not defined
    with torch.inference_mode():
        plain = model(x, src_key_padding_mask=padding)
        lp.lower(model, THROUGH)
        found = model(x, src_key_padding_mask=padding)
        assert torch.allclose(found[seen], plain[seen], atol=1e-5)
        lp.lower(model, BFP8)
        rounded = model(x, src_key_padding_mask=padding)
    assert not torch.allclose(rounded[seen], plain[seen], atol=1e-4)
    assert torch.allclose(rounded[seen], model(x, src_key_padding_mask=padding)[seen], atol=1e-5)


def test_a_whole_transformer_trains_as_the_plain_one():
    torch.manual_seed(0)
    model = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    source, target = torch.randn(BATCH, KEYS, 8), torch.randn(BATCH, LENGTH, 8)
    plain = _with_gradients(model, source, target)
    lp.lower(model, THROUGH)
    _assert_close(plain, _with_gradients(model, source, target))


# ---- F.scaled_dot_product_attention -------------------------------------------------------------------------------


class Sdpa(nn.Module):
    def forward(self, *qkv, **options):
        return F.scaled_dot_product_attention(*qkv, **options)


SDPA = {
    "plain": (2, {}),
    "causal": (2, {"is_causal": True}),
    "boolean mask": (2, {"attn_mask": ~CAUSAL}),
    "float mask": (2, {"attn_mask": BIASED}),
    "a query that sees nothing": (2, {"attn_mask": torch.tensor([[True] * KEYS, [False] * KEYS, [True] * KEYS])}),
    "scale": (2, {"scale": 0.7}),
    "grouped queries": (4, {"enable_gqa": True}),
    "grouped queries, causal": (4, {"enable_gqa": True, "is_causal": True}),
}


@pytest.mark.parametrize("case", SDPA)
def test_functional_attention_has_all_options_of_torchs(case):
    heads, options = SDPA[case]
    torch.manual_seed(0)
    model, q = nn.Sequential(Sdpa()), torch.randn(BATCH, heads, LENGTH, 4)
    k, v = torch.randn(BATCH, 2, KEYS, 4), torch.randn(BATCH, 2, KEYS, 6)
    plain = _with_gradients(model[0], q, k, v, **options)
    lp.lower(model, THROUGH, functional=True)
    _assert_close(plain, _with_gradients(model[0], q, k, v, **options))
    lp.lower(model, BFP8, functional=True)
    assert not torch.allclose(_with_gradients(model[0], q, k, v, **options)[0], plain[0], atol=1e-4)


def test_functional_attention_refuses_what_torchs_refuses():
    model, q = nn.Sequential(Sdpa()), torch.randn(2, 3, 4)
    lp.lower(model, THROUGH, functional=True)
    with pytest.raises(RuntimeError, match="attn_mask or is_causal"):
        model[0](q, q, q, attn_mask=torch.ones(3, 3), is_causal=True)


# ---- products that a module calls itself, and which modules are chosen --------------------------------------------


class Rotary(nn.Module):
    def forward(self, x):
        return x @ torch.eye(x.shape[-1]).flip(0)


class Block(nn.Module):
    """A transformer block written by hand."""

    def __init__(self):
        super().__init__()
        self.qkv, self.rotary, self.norm = nn.Linear(8, 24), Rotary(), nn.LayerNorm(8)
        self.mix = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(self.rotary(q), self.rotary(k), v, is_causal=True)
        return self.head(F.linear(x, self.mix) + torch.matmul(x, self.mix))


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block(), torch.randn(2, 4, 8)


def _names(items):
    return [item.name for item in items]


def test_functional_lowers_and_reports_what_modules_call_themselves(block):
    """Whatever parameters they own besides: the block, which owns a matrix, as well as the rotary embedding."""
    model, x = block
    plain = _with_gradients(model, x)
    report = lp.lower(model, THROUGH, functional=True)
    assert (_names(report.lowered), _names(report.functional)) == (["qkv", "head"], ["", "rotary"])
    assert _names(report.skipped) == ["norm"]
    row = {"name": "rotary", "layer": "Rotary", "status": "functional calls lowered", "detail": repr(THROUGH)}
    assert row in report.rows()
    _assert_close(plain, _with_gradients(model, x))


def test_functional_rounds_each_call_and_nothing_else_does(block):
    """On identical operands, with all layers exempted."""
    model, x = block
    exempted = tuple((name, Precision()) for name in ("qkv", "head"))
    plain = model(x)
    lp.lower(model, Precision(activation=lp.Int(4), overrides=exempted))
    assert torch.equal(model(x), plain)
    lp.lower(model, Precision(activation=lp.Int(4), overrides=exempted), functional=True)
    q, k, v = model.qkv(model.norm(x)).chunk(3, -1)

    def r(t):
        return lp.quantize(t, lp.Int(4))

    q, k = (r(t) @ r(torch.eye(8).flip(0)) for t in (q, k))
    scores = (r(q / 8**0.5) @ r(k).mT).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril(), -torch.inf)
    y = x + r(scores.softmax(-1)) @ r(v)
    expected = model.head(r(y) @ model.mix.t() + r(y) @ model.mix)
    assert torch.allclose(model(x), expected, atol=1e-5) and not torch.allclose(expected, plain, atol=1e-3)


@pytest.mark.parametrize("pattern", ["rotary", "type:Rotary", "rot*"])
def test_an_override_exempts_a_functional_module(block, pattern):
    model, x = block
    report = lp.lower(model, Precision(activation=lp.Int(3), overrides=((pattern, Precision()),)), functional=True)
    assert {item.name: item.precision == Precision() for item in report.functional} == {"": False, "rotary": True}
    assert torch.equal(model.rotary(x), x.flip(-1))
    lp.lower(model, Precision(activation=lp.Int(3)), functional=True)
    assert not torch.equal(model.rotary(x), x.flip(-1))


def test_a_module_inside_a_functional_one_has_its_own_precision(block):
    """An exempted one computes plainly although the module that calls it does not."""
    model, x = block
    lp.lower(model, Precision(weight=lp.Int(3), overrides=(("head", Precision()),)), functional=True)
    seen = {}
    model.head.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], y=output))
    model(x)
    assert torch.equal(seen["y"], F.linear(seen["x"], model.head.weight, model.head.bias))


def test_also_lowers_the_own_products_of_a_class(block):
    model, _ = block
    report = lp.lower(model, THROUGH)
    assert {item.name: item.multiplies for item in report.skipped} == {"": None, "norm": False}
    assert "also=[Block]" in report.skipped[0].reason
    with pytest.raises(ValueError, match=r"strict: 1 modules that multiply .*\n  \(model\): Block owns a matrix"):
        lp.lower(model, THROUGH, strict=True)
    report = lp.lower(model, BFP8, also=[Block], strict=True)
    assert _names(report.lowered) == ["", "qkv", "head"] and _names(report.skipped) == ["norm"]


def test_example_inputs_find_products_in_full_precision(block):
    model, x = block
    model.train()
    report = lp.lower(model, THROUGH, example_inputs=x)
    found = {item.name: item.reason for item in report.skipped if item.multiplies}
    assert found == {
        "rotary": "calls Tensor.matmul itself: functional=True lowers that",
        "": "calls torch.scaled_dot_product_attention, torch.linear, torch.matmul itself: functional=True lowers that",
    }
    assert model.training and not model._forward_hooks and not model.rotary._forward_pre_hooks
    with pytest.raises(ValueError, match="strict: 2 modules that multiply would stay in full precision"):
        lp.lower(model, THROUGH, example_inputs=x, strict=True)
    for inputs in (x, (x,), {"x": x}):
        report = lp.lower(model, THROUGH, example_inputs=inputs, functional=True, strict=True)
        assert [item.multiplies for item in report.skipped] == [False]


def test_example_inputs_leave_the_random_stream_and_the_ranges_alone(block):
    model, x = block
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    lp.lower(model, lp.precision("int8", overrides=()), example_inputs=x)
    assert torch.equal(torch.rand(3), expected) and lp.precision_state(model) == {}


class OwnsAMatrix(nn.Module):
    """A position embedding is a matrix that is only added."""

    def __init__(self):
        super().__init__()
        self.positions, self.layer = nn.Parameter(torch.zeros(4, 8)), nn.Linear(8, 3)

    def forward(self, x):
        return self.layer(x + self.positions)


def test_example_inputs_clear_who_only_owns_a_matrix():
    x = torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="OwnsAMatrix owns a matrix"):
        lp.lower(OwnsAMatrix(), BFP8, strict=True)
    report = lp.lower(OwnsAMatrix(), BFP8, strict=True, example_inputs=x)
    (item,) = report.skipped
    assert item.reason == "owns a matrix, but its own forward does not multiply" and item.multiplies is False


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("1", ["1"]),
        ("3.*", ["3.0", "3.1"]),
        ("@first", ["0"]),
        ("@last", ["3.1"]),
        ("type:Linear", ["1", "3.0", "3.1"]),
        ("type:_ConvNd", ["0"]),
        ("type:Conv*", ["0"]),
    ],
)
def test_overrides_choose_layers_by_name_type_and_place(pattern, matched):
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(4, 4), nn.ReLU(), inner)
    report = lp.lower(model, Precision("rest", weight=lp.BF16, overrides=((pattern, Precision("chosen")),)))
    assert _names(report.lowered) == ["0", "1", "3.0", "3.1"]
    assert [item.name for item in report.lowered if item.precision.name == "chosen"] == matched


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.function(x, self.weight)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, w: torch.tensordot(x, w, 1), "layer '0' calls torch.tensordot, which has no low-precision version"),
        (lambda x, w: torch.inner(x, w), "layer '0' calls torch.inner"),
        (lambda x, w: torch.einsum("ii,ij->ij", w, x), "explicit result, no ellipsis, no index twice"),
        (lambda x, w: torch.einsum("...i,ij->...j", x, w), "no ellipsis"),
        (lambda x, w: F.embedding(x.long().abs() % 4, w, max_norm=1.0), "max_norm or sparse gradients"),
    ],
)
def test_a_product_without_a_low_precision_version_is_refused(function, message):
    model, x = nn.Sequential(Calls(function)), torch.randn(4, 4)
    lp.lower(model, BFP8)
    with pytest.raises(NotImplementedError, match=message):
        model(x)
    lp.lower(model, lp.precision(BFP8, overrides=(("0", Precision()),)))
    model(x)  # what the message says to do

"""What a precision says of each operand, that equal meanings are equal, and what each recipe reads."""

import dataclasses
import pickle

import pytest
import qtorch
from hypothesis import given
from random_precisions import precisions

import lowprec_eb as lp
from energy_models import counts
from lowprec_eb.precision import GEMMS, LAYER_OPERANDS, OPERANDS, OPTIMIZER_OPERANDS, READERS, Precision
from lowprec_eb.recipes import RECIPES


def respelled(value, readers):
    """Another spelling of an operand: each GEMM by itself, formats as text, everything a Rounded."""
    if isinstance(value, lp.PerGemm):
        return lp.PerGemm(**{gemm: respelled(getattr(value, gemm), ()) for gemm in readers})
    if value is not None and not isinstance(value, lp.Rounded):
        value = lp.Rounded(repr(value))
    return lp.PerGemm(**dict.fromkeys(readers, value)) if readers else value


@given(precisions)
def test_repr_is_the_constructor_call(precision):
    assert eval(repr(precision), vars(lp).copy()) == precision


@given(precisions)
def test_repr_says_no_more_than_it_must(precision):
    assert all(f"{field.name}=None" not in repr(precision) for field in dataclasses.fields(Precision))
    assert repr(Precision(weight="bf16", rounding="nearest", vectors=False)) == f"Precision(weight={lp.BF16!r})"
    assert repr(lp.Rounded("int8", prescale=1)) == "Rounded(fmt=Int(bits=8))"
    assert repr(lp.Rounded("int8", prescale=2)) == "Rounded(fmt=Int(bits=8), prescale=2.0)"
    assert repr(lp.PerGemm(grad_weight=lp.Rounded(lp.Int(8)))) == "PerGemm(grad_weight=Int(bits=8))"


@given(precisions)
def test_equal_meanings_are_equal_whatever_their_spelling(precision):
    spelled = {name: respelled(getattr(precision, name), READERS.get(name, ())) for name in OPERANDS}
    rotation = lp.PerGemm(**{gemm: precision.rotation(gemm) for gemm in GEMMS})
    again = Precision(
        precision.name, **spelled, rounding=precision.rounding, hadamard=rotation, block_axis=precision.block_axis,
        accumulator_chunk=precision.accumulator_chunk, vectors=precision.vectors, overrides=list(precision.overrides),
        backend=precision.backend,
    )  # fmt: skip
    assert again == precision and hash(again) == hash(precision) and repr(again) == repr(precision)
    assert pickle.loads(pickle.dumps(precision)) == precision


@given(precisions)
def test_of_fills_in_the_rounding_and_nothing_else(precision):
    for operand in OPERANDS:
        for gemm in READERS.get(operand, (None,)):
            value = getattr(precision, operand)
            value = getattr(value, gemm) if isinstance(value, lp.PerGemm) else value
            if value is None:
                assert precision.of(operand, gemm) is None
                continue
            stated = value if isinstance(value, lp.Rounded) else lp.Rounded(value)
            expected = dataclasses.replace(stated, rounding=stated.rounding or precision.rounding)
            assert precision.of(operand, gemm) == expected
            if gemm is not None:
                plain = dataclasses.replace(precision, overrides=())
                assert plain.operand_format("any", gemm, operand) == expected.fmt


def test_operands_and_gemms_are_those_of_the_counter():
    assert GEMMS == counts.GEMMS
    assert {field.name for field in dataclasses.fields(Precision)} >= set(OPERANDS)
    assert [*READERS, *LAYER_OPERANDS, *OPTIMIZER_OPERANDS] == list(OPERANDS)


def test_qtorch_numbers_in_a_precision():
    number = qtorch.BlockFloatingPoint(wl=8, dim=0)
    assert Precision(weight=number).weight == lp.BlockFloat(8, 0)
    assert Precision(error=lp.PerGemm(grad_input=lp.Rounded(number))).of("error", "grad_input").fmt == lp.BlockFloat(
        8, 0
    )


def test_a_stated_rounding_stays_when_that_of_the_precision_changes():
    precision = Precision(weight=lp.Rounded("int8", "nearest"), activation="int8")
    changed = lp.precision(precision, rounding="stochastic")
    assert changed.of("weight", "output").rounding == "nearest"
    assert changed.of("activation", "output").rounding == "stochastic"


def test_the_optimizer_rounds_vectors_where_the_precision_says_so():
    for vectors in (False, True):
        precision = Precision(master="int8", rounding="stochastic", vectors=vectors)
        assert precision.parameter_rounded("master", 2) == lp.Rounded("int8", "stochastic")
        assert precision.parameter_format("master", 1) == (lp.Int(8) if vectors else None)
        assert precision.parameter_format("gradient", 2) is None


# ---- overrides ---------------------------------------------------------------------------------------------------

FP16 = Precision("half", weight="fp16")
BY_LAYER = Precision(
    weight="int8",
    overrides=[
        ("head", lp.precision("fp32")),
        ("@first", FP16),
        ("type:Conv?d", Precision("conv", weight="int4")),
        ("@last", lp.precision("bf16")),
        ("blocks.*.proj", lp.precision("swalp8")),
    ],
    backend="reference",
)


@pytest.mark.parametrize(
    ("layer", "options", "expected"),
    [
        ("stem", {}, "custom"),
        ("stem", {"first": True}, "half"),
        ("stem", {"last": True}, "bf16"),
        ("head", {"last": True, "first": True, "types": ["Conv2d"]}, "fp32"),  # the first match counts
        ("stem", {"types": ("LoweredConv2d", "Conv2d", "Module")}, "conv"),
        ("stem", {"types": ("Linear", "Module")}, "custom"),
        ("blocks.3.proj", {}, "swalp8"),
        ("blocks.3.proj.0", {}, "custom"),
        ("@first", {}, "custom"),
    ],
)
def test_the_first_override_that_matches_a_layer_replaces_the_precision(layer, options, expected):
    own = BY_LAYER.of_layer(layer, **options)
    assert own.name == expected and own.backend == "reference"


def test_an_override_has_overrides_of_its_own():
    nested = Precision(overrides=[("*", lp.precision("swalp8"))])
    assert nested.of_layer("a").name == "swalp8" and nested.of_layer("a", last=True).name == "swalp8-last"


def test_overrides_reach_the_counter_by_name():
    assert BY_LAYER.operand_format("stem", "output", "weight") == lp.Int(8)
    assert BY_LAYER.operand_format("blocks.0.proj", "output", "weight") == lp.BlockFloat(8, 0)
    assert BY_LAYER.operand_format("head", "output", "weight") is None


# ---- recipes -----------------------------------------------------------------------------------------------------

SBM, ROWS = "Int(8, symmetric=False, zero_point='minimum')", f"Int(8, block={1 << 30})"
# recipe: what output reads as activation and weight; grad_input as error and weight; grad_weight as activation, error
AS_DOCUMENTED = {
    "fp32": ((None, None), (None, None), (None, None)),
    "bf16": (("bf16", "bf16"), ("bf16", "bf16"), ("bf16", "bf16")),
    "bfp8": (("block8", "block8"), ("block8", "block8"), ("block8", "block8")),
    "swalp8": ((None, "block8"), ("block8", "block8"), (None, "block8")),
    "int8": ((SBM, SBM[:-1] + ", axis=0)"), (SBM, SBM[:-1] + ", axis=0)"), (SBM, SBM)),
    "int8_rowwise": ((ROWS, "int8"), (ROWS, "int8"), ("bf16", "bf16")),
    "fp8": (
        ("scaled_fp8_e4m3", "scaled_fp8_e4m3"), ("scaled_fp8_e5m2", "scaled_fp8_e4m3"),
        ("scaled_fp8_e4m3", "scaled_fp8_e5m2"),
    ),
    "mxfp8": (("mxfp8_e4m3", "mxfp8_e4m3"),) * 3,
    "mxfp4": (("bf16", "bf16"), ("mxfp4", "mxfp4"), ("mxfp4", "mxfp4")),
    "int4": ((None, "Int(4, axis=0)"), (None, "Int(4, axis=0)"), (None, None)),
}  # fmt: skip
READ = {"output": ("activation", "weight"), "grad_input": ("error", "weight"), "grad_weight": ("activation", "error")}


def test_every_recipe_is_in_the_table():
    assert list(RECIPES) == list(AS_DOCUMENTED)
    assert all(recipe.name == name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", AS_DOCUMENTED)
def test_every_recipe_reads_as_documented(name):
    for (gemm, operands), expected in zip(READ.items(), AS_DOCUMENTED[name], strict=True):
        for operand, fmt in zip(operands, expected, strict=True):
            wanted = None if fmt is None else Precision(weight=fmt).weight
            assert RECIPES[name].operand_format("any", gemm, operand) == wanted


def test_what_recipes_round_beside_the_gemms_and_how():
    for name, recipe in RECIPES.items():
        stored = {operand for operand in OPTIMIZER_OPERANDS if recipe.of(operand) is not None}
        assert stored == ({"gradient", "momentum", "master"} if name in ("bfp8", "swalp8") else set())
        assert recipe.of("normalization") is recipe.of("accumulator") is None
    int8, mxfp4 = RECIPES["int8"], RECIPES["mxfp4"]
    assert int8.of("activation", "output").running == 0.9 and int8.of("activation", "output").rounding == "nearest"
    assert int8.of("error", "grad_weight") == lp.Rounded(SBM, "stochastic")
    assert int8.of_layer("fc", last=True) == Precision("fp32") and int8.of_layer("conv", first=True) == int8
    for gemm, operands in READ.items():
        backward = gemm != "output"
        assert mxfp4.rotation(gemm) == (64 if backward else None)
        for operand in operands:
            wanted = lp.Rounded("mxfp4", "stochastic", prescale=0.75) if backward else lp.Rounded("bf16", "nearest")
            assert mxfp4.of(operand, gemm) == wanted


def test_the_first_four_recipes_are_what_results_were_measured_with():
    """Hashes of finished stages hold these texts: a change here orphans them."""
    block = "BlockFloat(wl=8, dim=0)"
    kept = f"gradient={block}, momentum={block}, master={block}, rounding='stochastic'"
    last = f"Precision(name='swalp8-last', weight={block}, rounding='stochastic')"
    bf16 = "Float(exp=8, man=7, specials='ieee', overflow='infinity')"
    assert [repr(RECIPES[name]) for name in ("fp32", "bf16", "bfp8", "swalp8")] == [
        "Precision(name='fp32')",
        f"Precision(name='bf16', weight={bf16}, activation={bf16}, error={bf16})",
        f"Precision(name='bfp8', weight={block}, activation={block}, error={block}, {kept})",
        f"Precision(name='swalp8', weight={block}, output={block}, error={block}, {kept}, vectors=True, "
        f"overrides=(('@last', {last}),))",
    ]


def test_a_recipe_with_changes():
    changed = lp.precision("bfp8", name="mine", error="fp8_e5m2", master=None)
    assert changed == dataclasses.replace(RECIPES["bfp8"], name="mine", error=lp.FP8_E5M2, master=None)
    assert lp.precision(changed) == changed and RECIPES["bfp8"].master == lp.BlockFloat(8, 0)


TWO_LEVELS = lp.ScaledFloat(lp.FP4_E2M1, scale=lp.FP8_E4M3, tensor_scale=True)

# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Precision(rounding="stochstic"), "precision 'custom': rounding must be one of .*mean 'stochastic'"),
        (lambda: Precision("a", backend="gpu"), "precision 'a': backend must be one of"),
        (lambda: Precision(block_axis="formt"), "block_axis must be one of reduction, format, .*did you mean 'format'"),
        (lambda: Precision(vectors=1), "vectors must be True or False, got 1"),
        (lambda: Precision(name=3), "name must be printable text"),
        (lambda: Precision(name="a\n"), "name must be printable text"),
        (lambda: Precision(weight=8), "precision 'custom': weight: not a number format: 8"),
        (lambda: Precision(weight="fp8_e4m4"), "weight: not a number format: .*did you mean 'fp8_e4m3'"),
        (lambda: Precision(weight=lp.PerGemm(grad_weight="bf16")), "weight is not read by grad_weight, only by output"),
        (lambda: Precision(activation=lp.PerGemm(grad_input="bf16")), "activation is not read by grad_input"),
        (lambda: Precision(error=lp.PerGemm(output="bf16")), "error is not read by output"),
        (lambda: Precision(weight=lp.PerGemm(output=64)), "weight: output: not a number format: 64"),
        (lambda: Precision(master=lp.PerGemm(output="bf16")), "master is the same for every GEMM"),
        (lambda: Precision(output=lp.PerGemm()), "output is the same for every GEMM"),
        (lambda: Precision(gradient=lp.Rounded("int8", running=0.5)), "gradient: running is for what GEMMs read"),
        (lambda: Precision(hadamard=48), "hadamard: must be a power of two from 2 to 1024, got 48"),
        (lambda: Precision(hadamard=2048), "hadamard: must be a power of two from 2 to 1024, got 2048"),
        (lambda: Precision(hadamard=True), "hadamard must be a size, a PerGemm of sizes, or None, got True"),
        (lambda: Precision(hadamard=lp.PerGemm(output="bf16")), "hadamard: must be a power of two"),
        (lambda: Precision("a", accumulator_chunk=64), "precision 'a': accumulator_chunk=64 needs .* accumulator"),
        (lambda: lp.precision(Precision(accumulator="bf16", accumulator_chunk=8), accumulator=None), "needs a format"),
        (lambda: Precision(accumulator="bf16", accumulator_chunk=0), "accumulator_chunk must be .* got 0"),
        (lambda: Precision(accumulator="bf16", accumulator_chunk=True), "accumulator_chunk must be .* got True"),
        (lambda: Precision(accumulator="bf16", accumulator_chunk=6.4), "accumulator_chunk must be .* got 6.4"),
        (lambda: Precision(overrides="@last"), "overrides must be pairs of a pattern and a precision"),
        (lambda: Precision(overrides=("@last", "fp32")), r"overrides\[0\] must be a pair"),
        (lambda: Precision(overrides=[("@frist", Precision())]), "override pattern .*did you mean '@first'"),
        (lambda: Precision(overrides=[("type:", Precision())]), "'type:' matches no layer"),
        (lambda: Precision(overrides=[("a", "bfp8")]), r"override 'a' must be a Precision.*lp.precision\('bfp8'\)"),
        (lambda: Precision(overrides=[("a", lp.BF16)]), "override 'a' must be a Precision, got"),
        (lambda: lp.Rounded(None), "fmt must be a number format, got None"),
        (lambda: lp.Rounded("bf17"), "not a number format: 'bf17'; did you mean 'bf16'"),
        (lambda: lp.Rounded("bf16", "up"), "Rounded: rounding must be one of"),
        (lambda: lp.Rounded("int8", running=1), "must be between 0 and 1, got 1"),
        (lambda: lp.Rounded("bf16", running=0.9), "running needs a format whose scale can be given"),
        (lambda: lp.Rounded(TWO_LEVELS, running=0.9), "running needs a format whose scale can be given"),
        (lambda: lp.Rounded(lp.Int(8, block=32), running=0.9), "without blocks of a size"),
        (lambda: lp.Rounded("int8", prescale=0), "prescale must be a finite number above 0, got 0"),
        (lambda: lp.Rounded("int8", prescale=float("inf")), "prescale must be a finite number above 0"),
        (lambda: lp.PerGemm(output="bf17"), "PerGemm: output: not a number format: 'bf17'"),
        (lambda: Precision().of("weight"), "gemm must be 'output' or 'grad_input', got None"),
        (lambda: Precision().of("weight", "grad_weight"), "gemm must be 'output' or 'grad_input', got 'grad_weight'"),
        (lambda: Precision().of("output", "output"), "output is the same for every GEMM: leave gemm out"),
        (lambda: Precision().of("wieght", "output"), "operand must be one of .*did you mean 'weight'"),
        (lambda: Precision().rotation("grad_inptu"), "gemm must be one of .*did you mean 'grad_input'"),
        (lambda: Precision().operand_format("a", "output", "momentum"), "a GEMM reads weight, activation or error"),
        (lambda: Precision().parameter_format("weight", 2), "operand must be one of gradient, update, momentum"),
        (lambda: lp.precision("bpf8"), "unknown precision 'bpf8'; did you mean 'bfp8'"),
        (lambda: lp.precision("zzz"), "unknown precision 'zzz'; recipes are fp32, bf16"),
        (lambda: lp.precision("bfp8", wieght=None), "field must be one of .*did you mean 'weight'"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()

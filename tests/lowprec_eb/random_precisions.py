"""Random precisions for the tests that state laws over all of them."""

from hypothesis import strategies as st

import lowprec_eb as lp
from lowprec_eb.formats import NAMED
from lowprec_eb.precision import LAYER_OPERANDS, OPTIMIZER_OPERANDS, READERS, Precision
from lowprec_eb.quantize import BACKEND_NAMES, ROUNDINGS
from lowprec_eb.recipes import RECIPES

UNNAMED = [lp.Int(8, symmetric=False, axis=(0, 2), zero_point="minimum"), lp.BlockFloat(6, dim=1), lp.Int(5, block=7)]
formats = st.sampled_from([*NAMED.values(), *UNNAMED])
takes_scale = st.sampled_from([lp.Int(8), lp.Int(4, axis=0), UNNAMED[0], lp.ScaledFloat(lp.FP8_E4M3)])
numbers = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
roundings = st.sampled_from(ROUNDINGS)
momenta = st.floats(0, 1, exclude_min=True, exclude_max=True)
kept = formats | st.builds(lp.Rounded, formats, rounding=st.none() | roundings)
one_scale = st.sampled_from([lp.Int(8), lp.BlockFloat(8, 0), lp.MX(lp.FP4_E2M1), lp.ScaledFloat(lp.FP8_E4M3)])
in_layers = (
    kept
    | st.builds(lp.Rounded, takes_scale, st.none() | roundings, momenta)
    | st.builds(lp.Rounded, one_scale, st.none() | roundings, prescale=numbers)
)
accumulations = st.just((None, None)) | st.tuples(kept, st.none() | st.integers(1, 512))  # a chunk needs a format
sizes = st.none() | st.sampled_from([2, 64, 1024])
# Letters of every kind, digits and signs that mean something in YAML.
names = st.text(st.characters(codec="utf-8", categories=["L", "N"]) | st.sampled_from(" :#-'\"{}[]@%\\,&*"), max_size=8)


def per_gemm(operand):
    values = st.none() | in_layers
    return values | st.builds(lp.PerGemm, **dict.fromkeys(READERS[operand], values))


def built(overrides):
    operands = {name: per_gemm(name) for name in READERS}
    operands |= dict.fromkeys(LAYER_OPERANDS, st.none() | kept)
    operands |= dict.fromkeys(OPTIMIZER_OPERANDS, st.none() | kept)
    del operands["accumulator"]
    return st.builds(
        lambda accumulation, **rest: Precision(accumulator=accumulation[0], accumulator_chunk=accumulation[1], **rest),
        accumulations,
        name=names,
        rounding=roundings,
        hadamard=sizes | st.builds(lp.PerGemm, sizes, sizes, sizes),
        block_axis=st.sampled_from(["reduction", "format"]),
        vectors=st.booleans(),
        overrides=overrides,
        backend=st.sampled_from(BACKEND_NAMES),
        **operands,
    )


patterns = st.sampled_from(["@first", "@last", "type:Conv*", "features.*", "0", "[36]"])
override_lists = st.lists(st.tuples(patterns, built(st.just(())) | st.sampled_from(list(RECIPES.values()))), max_size=2)
precisions = built(override_lists)

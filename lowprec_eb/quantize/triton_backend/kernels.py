"""The kernels in Triton: rounding tiles of (rows, columns), and the largest magnitudes of blocks beyond a tile.

Imported at the first call, since it imports triton.
"""

import triton
import triton.language as tl

from lowprec_eb.quantize.triton_backend.arithmetic import (
    STOCHASTIC,
    finite_magnitude,
    float32_scale,
    load,
    power_of_two,
    random_bits,
    round_affine,
    round_codes,
    round_float,
    rounded_scale,
    shared_exponent,
    store,
    tensor_scale,
)

# Values of KIND, RULE and LAYOUT.
WHOLE, AFFINE, FLOAT = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NO_SCALE, GIVEN = tl.constexpr(-1), tl.constexpr(0)
SHARED_EXPONENT, FLOAT32_SCALE, ROUNDED_SCALE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
FLAT, RUNS, STRIPES, ROWS, COLUMNS = (tl.constexpr(layout) for layout in range(5))

# Numbers of a format: a kernel that depended on their divisibility would be compiled anew for each.
_FORMAT = [
    *("offset", "low", "high", "passes", "step", "steps", "levels"),
    *("mantissa", "normal", "step_exponent", "largest", "beyond", "infinite", "element_exponent", "lowest_exponent"),
    *("scale_mantissa", "scale_normal", "scale_step_exponent", "smallest_scale", "highest_scale"),
    *("span", "dropped", "largest_result"),
]


@triton.jit
def _places(
    rows,
    length,
    size,
    blocks,
    inner,
    tiles,
    LAYOUT: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """Of this program's tile: index of each row's first element, which elements there are, their blocks, and which of
    these there are."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    row, column = tl.arange(0, R), tl.arange(0, W)
    across, part = program // tiles, (program % tiles) * W
    if LAYOUT == RUNS:
        block = program * R + row
        within = (block % blocks) * size
        start = (block // blocks) * length + within
        count = tl.where(block < rows, tl.minimum(length - within, size), 0)
        inside = column[None, :] < count[:, None]
        cell, exists = block[:, None], (block < rows)[:, None]
    elif LAYOUT == STRIPES:
        first = (across % blocks) * size + row
        start = ((across // blocks) * length + first) * inner + part
        cell, exists = (across * inner + part + column)[None, :], (column < inner - part)[None, :]
        inside = ((row < size) & (first < length))[:, None] & exists
    elif LAYOUT == COLUMNS:
        line = across * R + row
        start = line * (length * inner) + part
        cell, exists = ((part + column) // inner)[None, :], (column < length * inner - part)[None, :]
        inside = (line < rows)[:, None] & exists
    elif LAYOUT == ROWS:
        start = across * inner + part + row
        inside = (column < inner - part)[None, :]
        cell, exists = (across % length + row)[:, None], (row < 1)[:, None]
    else:
        start = program * W + row
        inside = (column < rows - program * W)[None, :]
        cell, exists = row[:, None], (row < 1)[:, None]
    return start, inside, cell, exists


@triton.jit
def _largest_of_blocks(x, scales, cell, exists, LAYOUT: tl.constexpr):
    """Patterns of the largest finite magnitudes: of the tile's own blocks, or as they were measured before."""
    if LAYOUT == RUNS:
        found = tl.max(finite_magnitude(x), 1)[:, None]
    elif LAYOUT == STRIPES:
        found = tl.max(finite_magnitude(x), 0)[None, :]
    else:
        found = tl.load(scales + cell, mask=exists, other=0)
    return found


@triton.jit
def _random_of_tile(seed, first, MODE: tl.constexpr, PAIRED: tl.constexpr, R: tl.constexpr, W: tl.constexpr):
    bits = 0
    if MODE == STOCHASTIC:
        bits = random_bits(tl.load(seed).to(tl.uint64, bitcast=True), first, PAIRED, R, W)
    return bits


@triton.jit
def _note_nan(x, damaged, REFUSES_NAN: tl.constexpr):
    if REFUSES_NAN:
        nan = tl.sum(tl.sum((x != x).to(tl.int32), 1), 0)
        tl.store(damaged, 1, mask=nan > 0)


@triton.jit
def _tensor_scale(tensor, span, dropped, RULE: tl.constexpr, TWO_LEVELS: tl.constexpr):
    scale = 1.0
    if TWO_LEVELS:
        scale = tl.load(tensor) if RULE == GIVEN else tensor_scale(tl.load(tensor), span, dropped)
    return scale


@triton.jit(do_not_specialize=_FORMAT)
def round_tiles(
    source,
    target,
    scales,  # one a block: float32 numbers if they are GIVEN, else patterns of the largest magnitudes
    zeros,  # zero points
    tensor,  # the tensor's own scale, likewise
    seed,
    damaged,  # set to 1 where a NaN was rounded
    offset,
    rows,
    length,
    size,
    blocks,
    inner,
    tiles,
    low,
    high,
    passes,
    step,
    steps,
    levels,
    mantissa,
    normal,
    step_exponent,
    largest,
    beyond,
    infinite,
    element_exponent,
    lowest_exponent,
    scale_mantissa,
    scale_normal,
    scale_step_exponent,
    smallest_scale,
    highest_scale,
    span,
    dropped,
    largest_result,
    KIND: tl.constexpr,
    MODE: tl.constexpr,
    RULE: tl.constexpr,
    LAYOUT: tl.constexpr,
    INEXACT: tl.constexpr,
    FROM_MINIMUM: tl.constexpr,
    TWO_LEVELS: tl.constexpr,
    REFUSES_NAN: tl.constexpr,
    PAIRED: tl.constexpr,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    """Round a tile of R rows and W columns of a contiguous tensor.

    FLAT: the columns are consecutive elements. RUNS: each row is a block. STRIPES: each column is a block. ROWS: the
    one row belongs to one block. COLUMNS: each column belongs to one block.
    """
    start, inside, cell, exists = _places(rows, length, size, blocks, inner, tiles, LAYOUT, WIDE, R, W)
    place = start[:, None] + tl.arange(0, W)[None, :]
    x = load(source + place, inside)
    _note_nan(x, damaged, REFUSES_NAN)
    random = _random_of_tile(seed, start.to(tl.uint64) + offset, MODE, PAIRED, R, W)
    whole_scale = _tensor_scale(tensor, span, dropped, RULE, TWO_LEVELS)

    # The scale, and what is rounded.
    if RULE == NO_SCALE:
        scale = step if KIND == WHOLE else 1.0
        quotient = x * steps if KIND == WHOLE else x
    elif RULE == SHARED_EXPONENT:  # multiplied by an inverse, which is exact, in two factors if it overflows
        found = _largest_of_blocks(x, scales, cell, exists, LAYOUT)
        exponent = shared_exponent(found, element_exponent, lowest_exponent) + (step_exponent if KIND == WHOLE else 0)
        scale = power_of_two(exponent)
        quotient = x * power_of_two(tl.minimum(-exponent, 127)) * power_of_two(tl.maximum(-exponent - 127, 0))
    else:
        if RULE == GIVEN:
            scale = tl.load(scales + cell, mask=exists, other=1.0)
        else:
            found = _largest_of_blocks(x, scales, cell, exists, LAYOUT)
            if RULE == FLOAT32_SCALE:
                scale = float32_scale(found, levels)
            else:
                levels = levels * whole_scale
                scale = rounded_scale(
                    found, levels, scale_mantissa, scale_normal, scale_step_exponent, smallest_scale, highest_scale
                )
        quotient = x if KIND == AFFINE else tl.div_rn(x, scale * whole_scale)

    if KIND == AFFINE:
        zero = tl.load(zeros + cell, mask=exists, other=0.0)
        value = round_affine(x, scale, zero, random, high, passes, largest_result, MODE, FROM_MINIMUM)
    elif KIND == WHOLE:
        code = round_codes(quotient, low, high, random, MODE, INEXACT)
        value = tl.where(tl.abs(x) >= passes, x, code * scale) + 0.0  # integers have one zero
    else:
        value = round_float(quotient, random, mantissa, normal, step_exponent, largest, beyond, infinite, MODE, INEXACT)
        value = value * scale * whole_scale
    store(target + place, value, inside)


@triton.jit
def measure_rows(source, largest, cells, inner, tiles, WIDE: tl.constexpr, W: tl.constexpr, LOOPS: tl.constexpr):
    """Raise ``largest[row % cells]`` to the patterns of the finite magnitudes of rows of ``inner`` elements."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    line, part = program // tiles, (program % tiles) * (W * LOOPS)
    column = tl.arange(0, W)
    found = tl.zeros([W], tl.int32)
    for turn in range(LOOPS):
        first = part + turn * W
        x = load(source + (line * inner + first) + column, column < inner - first)
        found = tl.maximum(found, finite_magnitude(x))
    tl.atomic_max(largest + line % cells, tl.max(found, 0), sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def measure_columns(
    source,
    largest,
    rows,
    length,
    inner,
    tiles,
    WIDE: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
    LOOPS: tl.constexpr,
):
    """Raise ``largest[index]`` of a tensor (rows, length, inner) to the patterns of its finite magnitudes."""
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    part, column = (program % tiles) * W, tl.arange(0, W)
    exists = column < length * inner - part
    found = tl.zeros([R, W], tl.int32)
    for turn in range(LOOPS):
        line = ((program // tiles) * LOOPS + turn) * R + tl.arange(0, R)
        place = (line * (length * inner) + part)[:, None] + column[None, :]
        x = load(source + place, (line < rows)[:, None] & exists[None, :])
        found = tl.maximum(found, finite_magnitude(x))
    tl.atomic_max(largest + (part + column) // inner, tl.max(found, 0), mask=exists, sem="relaxed")

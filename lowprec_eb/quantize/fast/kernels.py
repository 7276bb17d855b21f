"""The kernels: one pass over memory, vector by vector, each loaded, rounded and stored in registers.

A kernel is ``kernel(job, first, last)`` on the buffer that :mod:`lowprec_eb.quantize.fast.slots` lays out. Family of
elements, kind of scale, rounding and dtype are fixed when it is compiled; widths, ranges and layouts come at run time.
Imported only when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.arithmetic import (
    ABSOLUTE,
    DECODERS,
    FAMILIES,
    INFINITY,
    FloatSlots,
    Job,
    Scale,
    clamped,
    paired_words,
    power_of_two,
    random_words,
    real_scale,
    scattered_words,
    unscaled,
)
from lowprec_eb.quantize.fast.lanes import F32, I32, I64, Code, Value, vector
from lowprec_eb.quantize.fast.loops import Codes, Elements, LogicalRows, Window, groups, segments, stripe_rows, windows

# ---- scales ------------------------------------------------------------------------------------------------------


def _finite_magnitudes(x: Value) -> Value:
    """Bit patterns; 0 of what is not finite."""
    a = x.bits & ABSOLUTE
    return x.code.pick(a < INFINITY, a, 0)


def _measured(elements: Elements, code: Code, first: Value, last: Value) -> Value:
    """Largest bit pattern of the finite magnitudes of consecutive elements."""
    largest = code.variable(code.constant(vector(I32), 0))
    for window in windows(code, first, last):
        largest.set(largest.get().math("umax", _finite_magnitudes(elements.load(window))))
    return largest.get().largest_lane()


def _power(exponent: Value) -> Value:
    """2 to a 64-bit integer from -149 to 127."""
    code = exponent.code
    normal = (exponent + 127).to("trunc", I32) << 23
    subnormal = code.constant(I32, 1) << (code.pick(exponent < -126, exponent, -126) + 149).to("trunc", I32)
    return code.pick(exponent < -126, subnormal, normal).as_float


def _shared_exponent(job: Job, largest: Value) -> Value:
    """The largest power of two within ``largest``, shifted and clamped; every product of powers is exact."""
    code = job.code
    lowest, step = _power(job.integer(slots.LOWEST_EXPONENT)), _power(job.integer(slots.STEP_EXPONENT))
    steps = (largest.to("sitofp", F32).bits & INFINITY).as_float  # of 2 ** -149, which is what subnormal numbers count
    power = code.pick(largest < 1 << 23, steps * 2.0**-149, (largest & INFINITY).as_float)
    scale = clamped(power * _power(job.integer(slots.ELEMENT_EXPONENT) * -1), lowest, 2.0**127) * step
    return code.pick(largest.equals(0), 1.0, scale)  # any scale gives zeros; a subnormal one would be slow


def _float32_scale(job: Job, largest: Value) -> Value:
    levels, smallest = job.real(slots.LEVELS), job.real(slots.SMALLEST_SCALE)
    return _odd(largest.as_float / levels, smallest, levels)


def _odd(scale: Value, smallest: Value, levels: Value) -> Value:
    code = scale.code
    odd = code.pick(scale < smallest, smallest, scale).bits | 1
    fits = (odd.as_float * levels).bits < INFINITY
    return code.pick(fits, odd, odd - 2).as_float


def _rounded_scale(job: Job, largest: Value) -> Value:
    smallest, most = job.real(slots.SMALLEST_SCALE), job.real(slots.LARGEST_SCALE)
    scale = (largest.as_float / job.real(slots.LEVELS)).bits
    return clamped(FloatSlots(job, slots.SCALE_FORMAT, slots.SCALE_MAGIC).even(scale).as_float, smallest, most)


def _scale_by_rule(job: Job, largest: Value) -> Value:
    rule = job.integer(slots.RULE)
    return job.code.choose(
        rule.equals(slots.SHARED_EXPONENT),
        lambda: _shared_exponent(job, largest),
        lambda: job.code.choose(
            rule.equals(slots.FLOAT32_SCALE),
            lambda: _float32_scale(job, largest),
            lambda: _rounded_scale(job, largest),
        ),
    )


def _apply_rule(job: Job, first: Value, last: Value) -> None:
    """Scales of blocks from the largest magnitudes that stand in their places."""
    for window in windows(job.code, first, last):
        scales = job.integer(slots.SCALES)
        window.store(_scale_by_rule(job, window.load(I32, scales)), scales)


# ---- kernels -----------------------------------------------------------------------------------------------------


class _Rounder:
    """Rounds segments of elements whose scales are known: every element is loaded, rounded and stored here."""

    def __init__(
        self, job: Job, family: str, scaling: str, rounding: str, dtype: str, nan: str, order: str, codes: str
    ) -> None:
        self.job, self.code, self.elements = job, job.code, Elements(job, dtype)
        self._round = FAMILIES[family](job, rounding, scaling != "real")
        self._scaling, self._stochastic = scaling, rounding == "stochastic"
        self._affine = family == "round_affine"
        self._tensor_scale = job.real(slots.TENSOR_SCALE)
        self._seed, self._offset = job.integer(slots.SEED), job.integer(slots.OFFSET)
        self._seen = self.code.variable(self.code.constant(vector(I32), 0))  # largest magnitude: above infinity is NaN
        self._codes = Codes(job) if codes == "coded" else None
        self._watches = nan == "error" or self._codes is not None
        self._permuted = order == "permuted"

    def segment(self, first: Value, last: Value, scale_of: Callable[[Window], Scale]) -> None:
        if self._permuted:
            self._permuted_segment(first, last, scale_of)
            return
        start = first - ((self._offset + first) & 1) if self._stochastic else None  # a pair shares a random number
        for window in windows(self.code, first, last, start):
            word = random_words(self.code, self._seed, self._offset + window.at) if self._stochastic else None
            self._round_window(window, scale_of, word)

    def _permuted_segment(self, first: Value, last: Value, scale_of: Callable[[Window], Scale]) -> None:
        rows, code = LogicalRows(self.job, first, last, self._offset), self.code
        row, step = self.job.integer(slots.ROW), self.job.integer(slots.STEP)
        with code.while_(rows.left), code.when_else(rows.is_pair()) as (pair, single):
            with pair:
                begin, end, index = rows.next()
                rows.next()
                for window in windows(code, begin, end):
                    even, odd = paired_words(code, self._seed, index + (window.at - begin) * step, step)
                    self._round_window(window, scale_of, even)
                    self._round_window(window.behind(row), scale_of, odd)
            with single:
                begin, end, index = rows.next()
                for window in windows(code, begin, end):
                    word = scattered_words(code, self._seed, index + (window.at - begin) * step, step)
                    self._round_window(window, scale_of, word)

    def _round_window(self, window: Window, scale_of: Callable[[Window], Scale], word: Value | None) -> None:
        x = self.elements.load(window)
        if self._watches:
            self._seen.set(self._seen.get().math("umax", x.bits & ABSOLUTE))
        rounded = self._round(x, scale_of(window), word)
        self.elements.store(window, rounded.value)
        if self._codes is not None:
            self._codes.store(window, rounded.code())

    def of_one_scale(self, first: Value, last: Value, number: Value, layout: Value) -> None:
        scale = self.code.choose(
            layout.equals(slots.NO_BLOCKS),
            lambda: self.job.real(slots.CONSTANT_SCALE),
            lambda: self._block_number(slots.SCALES, number),
        )
        if self._scaling == "power":
            known = power_of_two(self.code, scale)
        else:
            zero = self._block_number(slots.ZEROS, number) if self._affine else None
            known = real_scale(scale, self._tensor_scale, zero)
        self.segment(first, last, lambda _: known)

    def of_stripes(self, first: Value, last: Value, number: Value) -> None:
        def scale_of(window: Window) -> Scale:
            behind = (number - first) * 4
            scale = window.load(F32, self.job.integer(slots.SCALES) + behind, 1.0)
            zero = window.load(F32, self.job.integer(slots.ZEROS) + behind, 0.0) if self._affine else None
            return real_scale(scale, self._tensor_scale, zero)

        self.segment(first, last, scale_of)

    def _block_number(self, slot: int, number: Value) -> Value:
        return self.code.load(F32, self.job.integer(slot) + number * 4)

    def finish(self) -> None:
        smallest = INFINITY + (self._codes is None)  # what is not finite has no code
        with self.code.when(self._seen.get().largest_lane() >= smallest):
            self.job.write(slots.NAN_SEEN, self.code.constant(I64, 1))


class _Decoder(_Rounder):
    """Makes rounded values of their codes."""

    def __init__(self, job: Job, family: str, scaling: str, dtype: str) -> None:
        super().__init__(job, family, scaling, "nearest", dtype, "keep", "plain", "coded")
        self._decode = DECODERS[family](job)

    def segment(self, first: Value, last: Value, scale_of: Callable[[Window], Scale]) -> None:
        assert self._codes is not None
        for window in windows(self.code, first, last):
            self.elements.store(window, self._decode(self._codes.load(window), scale_of(window)))


def _decode(job: Job, first: Value, last: Value, family: str, scaling: str, dtype: str) -> None:
    """Elements ``first`` to ``last`` from their codes; of a layout in runs, rows. The scales are known."""
    decoder = _Decoder(job, family, scaling, dtype)
    if scaling == "unscaled":
        decoder.segment(first, last, lambda _: unscaled())
    else:
        _round_scaled(job, decoder, first, last)


def _round(job: Job, first: Value, last: Value, family: str, scaling: str, *how: str) -> None:
    """Round elements ``first`` to ``last``; of a layout in runs, rows, whose scales are found on the way."""
    rounder = _Rounder(job, family, scaling, *how)
    if scaling == "unscaled":
        rounder.segment(first, last, lambda _: unscaled())
    else:
        _round_scaled(job, rounder, first, last)
    rounder.finish()


def _round_scaled(job: Job, rounder: _Rounder, first: Value, last: Value) -> None:
    code, layout = job.code, job.integer(slots.LAYOUT)
    finds = layout.equals(slots.RUNS) & (job.integer(slots.RULE) > slots.GIVEN)
    with code.when_else(layout.equals(slots.STRIPES)) as (stripes, others):
        with stripes:
            for row in stripe_rows(job, first, last):
                rounder.of_stripes(*row)
        with others:
            for start, end in groups(job, first, last):
                with code.when(finds):
                    _find_run_scales(job, rounder.elements, start, end)
                for segment in segments(job, start, end):
                    rounder.of_one_scale(*segment, layout)


def _find_run_scales(job: Job, elements: Elements, first: Value, last: Value) -> None:
    scales, blocks = job.integer(slots.SCALES), job.integer(slots.BLOCKS)
    for start, end, number in segments(job, first, last):
        job.code.store(_measured(elements, job.code, start, end), scales + number * 4)
    _apply_rule(job, first * blocks, last * blocks)


def _find_scales(job: Job, first: Value, last: Value, dtype: str) -> None:
    """Scales of a layout in slices or stripes; ``last`` is the number of outer indices."""
    code, elements, scales = job.code, Elements(job, dtype), job.integer(slots.SCALES)
    length, inner, blocks = job.integer(slots.LENGTH), job.integer(slots.INNER), job.integer(slots.BLOCKS)
    slices = job.integer(slots.LAYOUT).equals(slots.SLICES)
    count = code.pick(slices, blocks, blocks * last * inner)
    for window in windows(code, first, count):
        window.store(code.constant(vector(I32), 0), scales)
    stop = last * length * inner
    with code.when_else(slices) as (by_slices, by_stripes):
        with by_slices:
            for start, end, number in segments(job, first, stop):
                place = scales + number * 4
                code.store(code.load(I32, place).math("umax", _measured(elements, code, start, end)), place)
        with by_stripes:
            for start, end, number in stripe_rows(job, first, stop):
                behind = scales + (number - start) * 4
                for window in windows(code, start, end):
                    a = _finite_magnitudes(elements.load(window))
                    window.store(window.load(I32, behind).math("umax", a), behind)
    _apply_rule(job, first, count)


def _find_bounds(job: Job, first: Value, last: Value, dtype: str) -> None:
    """Smallest and largest finite number of each run, at the addresses of scales and zero points."""
    code, elements = job.code, Elements(job, dtype)
    for start, end, number in segments(job, first, last):
        low = code.variable(code.constant(vector(F32), float("inf")))
        high = code.variable(code.constant(vector(F32), float("-inf")))
        for window in windows(code, start, end):
            x = elements.load_or_nan(window)
            finite = (x.bits & ABSOLUTE) < INFINITY
            low.set(low.get().math("minnum", code.pick(finite, x, float("inf"))))
            high.set(high.get().math("maxnum", code.pick(finite, x, float("-inf"))))
        code.store(low.get().reduced("fmin"), job.integer(slots.SCALES) + number * 4)
        code.store(high.get().reduced("fmax"), job.integer(slots.ZEROS) + number * 4)


def _apply_affine_rule(job: Job, first: Value, last: Value) -> None:
    """Scales and zero points of blocks from the bounds that stand in their places."""
    code, levels = job.code, job.real(slots.LEVELS)
    scales, zeros, from_minimum = job.integer(slots.SCALES), job.integer(slots.ZEROS), job.real(slots.LOW) > 0.0
    for window in windows(code, first, last):
        low, high = window.load(F32, scales, 0.0), window.load(F32, zeros, 0.0)
        empty = low > high
        low, high = code.pick(empty, 0.0, low) + 0.0, code.pick(empty, 0.0, high)
        around_zero = clamped(low, float("-inf"), 0.0), clamped(high, 0.0, float("inf"))
        low = code.pick(from_minimum, low, around_zero[0])
        high = code.pick(from_minimum, high, around_zero[1])
        scale = _odd(high / levels - low / levels, job.real(slots.SMALLEST_SCALE), levels)
        zero = clamped((low * -1.0 / scale).math("roundeven"), 0.0, levels)
        window.store(scale, scales)
        window.store(code.pick(from_minimum, low, zero), zeros)


def _measure(job: Job, first: Value, last: Value, dtype: str) -> None:
    """Largest finite magnitude of consecutive elements, as a float32 at the address of the scales."""
    job.code.store(_measured(Elements(job, dtype), job.code, first, last), job.integer(slots.SCALES))


def _take_tasks(job: Job, first: Value, last: Value) -> None:
    """Of a team of threads each one runs this: a kernel on the next task, until none is left."""
    code, tasks = job.code, job.address + 8 * slots.TASKS
    kernel, count = job.integer(slots.TASK_KERNEL), job.integer(slots.TASK_COUNT)
    number = code.variable(code.count_up(job.address + 8 * slots.NEXT_TASK))
    with code.while_(lambda: number.get() < count):
        task = tasks + number.get() * 24
        code.run(kernel, [code.load(I64, task + 8 * part) for part in range(3)])
        number.set(code.count_up(job.address + 8 * slots.NEXT_TASK))


_OTHERS: dict[str, Callable[..., None]] = {
    "decode": _decode,
    "find_scales": _find_scales,
    "find_bounds": _find_bounds,
    "measure": _measure,
    "apply_rule": _apply_rule,
    "apply_affine_rule": _apply_affine_rule,
    "take_tasks": _take_tasks,
}


def build(name: str, symbol: str) -> str:
    """LLVM's text of a kernel, which defines ``symbol``."""
    kind, *choices = name.split("-")
    code = Code(symbol)
    address, first, last = code.arguments
    if kind in _OTHERS:
        _OTHERS[kind](Job(code, address), first, last, *choices)
    else:
        _round(Job(code, address), first, last, kind, *choices)
    return code.finished()

"""Loops over memory: windows of a vector's width, how elements are loaded and stored there, and how blocks lie.

Imported only when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.arithmetic import Job
from lowprec_eb.quantize.fast.lanes import F32, I16, I32, I64, LANES, Code, Value, bytes_of, vector

_CACHED = 4096  # elements that are measured before they are rounded

# ---- windows -----------------------------------------------------------------------------------------------------


class Window:
    """``LANES`` neighbours from index ``at`` on; of some only ``lanes`` exist, None: all."""

    def __init__(self, at: Value, lanes: Value | None = None) -> None:
        self.at, self._lanes = at, lanes

    def load(self, kind: Any, address: Value, otherwise: Any = 0) -> Value:
        """From ``address``, where index 0 lies."""
        code, place = self.at.code, address + self.at * bytes_of(kind)
        if self._lanes is None:
            return code.load(vector(kind), place)
        return code.load_lanes(vector(kind), place, self._lanes, otherwise)

    def store(self, value: Value, address: Value) -> None:
        code, place = self.at.code, address + self.at * bytes_of(value.element)
        if self._lanes is None:
            code.store(value, place)
        else:
            code.store_lanes(value, place, self._lanes)


def windows(code: Code, first: Value, last: Value, start: Value | None = None) -> Iterator[Window]:
    """A loop over the windows of indices ``first`` to before ``last``; the first one may begin earlier, at ``start``.

    Its body is written twice: for whole windows, and for those at the ends.
    """
    at = code.variable(first if start is None else start)

    def is_whole() -> Value:
        fits = at.get() + LANES <= last
        return fits if start is None else fits & (at.get() >= first)

    with code.while_(lambda: at.get() < last):
        with code.while_(is_whole):
            yield Window(at.get())
            at.set(at.get() + LANES)
        with code.when(at.get() < last):
            yield Window(at.get(), _lanes(at.get(), first, last))
            at.set(at.get() + LANES)


def _lanes(at: Value, first: Value, last: Value) -> Value:
    code, left = at.code, last - at
    lane = code.constant(vector(I32), list(range(LANES)))
    low = code.pick(at < first, first - at, 0).to("trunc", I32)
    return (lane >= low) & (lane < code.pick(left < LANES, left, LANES).to("trunc", I32))


# ---- elements ----------------------------------------------------------------------------------------------------


class Elements:
    """The elements of the two tensors, as float32."""

    def __init__(self, job: Job, dtype: str) -> None:
        self._code, self._dtype = job.code, dtype
        self._source, self._target = job.integer(slots.SOURCE), job.integer(slots.TARGET)

    def load(self, window: Window) -> Value:
        if self._dtype == "float32":
            return window.load(F32, self._source, 0.0)
        pattern = window.load(I16, self._source)
        if self._dtype == "bfloat16":
            return (pattern.to("zext", I32) << 16).as_float
        return pattern.to("bitcast", ir.HalfType()).to("fpext", F32)

    def store(self, window: Window, value: Value) -> None:
        if self._dtype == "bfloat16":
            up = value.bits + 0x8000  # a NaN stays one: those of bfloat16 have an empty lower half
            even = self._code.pick((up & 0xFFFF).equals(0), up & 0xFFFEFFFF, up)
            value = (even >> 16).to("trunc", I16)
        elif self._dtype == "float16":
            value = value.to("fptrunc", ir.HalfType()).to("bitcast", I16)
        window.store(value, self._target)


# ---- layouts -----------------------------------------------------------------------------------------------------


def segments(job: Job, first: Value, last: Value) -> Iterator[tuple[Value, Value, Value]]:
    """Consecutive elements of one scale, in every layout but stripes: position, end, and number of the scale.

    ``first`` and ``last`` are rows of a layout in runs, else elements. Rows of slices are ``inner`` elements, and their
    scales return after ``length`` rows; without blocks all is one row.
    """
    code, layout, pick = job.code, job.integer(slots.LAYOUT), job.code.pick
    runs, slices = layout.equals(slots.RUNS), layout.equals(slots.SLICES)
    length, inner = job.integer(slots.LENGTH), job.integer(slots.INNER)
    start, stop = pick(runs, first * length, first), pick(runs, last * length, last)
    row = pick(runs, length, pick(slices, inner, stop - start))
    size = pick(runs, job.integer(slots.SIZE), row)
    scales = pick(slices, length, stop)
    rows_before = start // pick(slices, inner, 1)
    position = code.variable(start)
    row_end = code.variable(pick(slices, (rows_before + 1) * inner, start + row))
    number = code.variable(pick(runs, first * job.integer(slots.BLOCKS), rows_before % scales))
    with code.while_(lambda: position.get() < stop):
        end = _smaller(_smaller(position.get() + size, row_end.get()), stop)
        yield position.get(), end, number.get()
        position.set(end)
        row_end.set(pick(end < row_end.get(), row_end.get(), row_end.get() + row))
        following = number.get() + 1
        number.set(pick(following.equals(scales), 0, following))


def groups(job: Job, first: Value, last: Value) -> Iterator[tuple[Value, Value]]:
    """Of a layout in runs, rows that stay in the cache between measuring and rounding; all of another layout."""
    code, length = job.code, job.integer(slots.LENGTH)
    rows = code.constant(I64, _CACHED) // code.pick(length > 1, length, 1)
    rows = code.pick(job.integer(slots.LAYOUT).equals(slots.RUNS), code.pick(rows > 1, rows, 1), last - first)
    position = code.variable(first)
    with code.while_(lambda: position.get() < last):
        start = position.get()
        end = _smaller(start + rows, last)
        yield start, end
        position.set(end)


def _smaller(a: Value, b: Value) -> Value:
    return a.code.pick(a < b, a, b)


def stripe_rows(job: Job, first: Value, last: Value) -> Iterator[tuple[Value, Value, Value]]:
    """Rows of ``inner`` elements of a layout in stripes: position, end, and number of the first element's scale."""
    code, length, inner = job.code, job.integer(slots.LENGTH), job.integer(slots.INNER)
    position = code.variable(first)
    with code.while_(lambda: position.get() < last):
        start = position.get()
        row = start // inner
        end = _smaller((row + 1) * inner, last)
        block = row // length * job.integer(slots.BLOCKS) + row % length // job.integer(slots.SIZE)
        yield start, end, block * inner + (start - row * inner)
        position.set(end)

"""Loops over memory: windows of a vector's width, how elements are loaded and stored there, and how blocks lie.

Imported only when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from lowprec_eb.quantize.fast import slots
from lowprec_eb.quantize.fast.arithmetic import Job
from lowprec_eb.quantize.fast.lanes import F32, I8, I16, I32, I64, LANES, Code, Value, bytes_of, vector

_NAN = {"bfloat16": 0x7FC0, "float16": 0x7E00}
_CACHED = 4096  # elements that are measured before they are rounded

# ---- windows -----------------------------------------------------------------------------------------------------


class Window:
    """``LANES`` neighbours from index ``at`` on; of some only ``lanes`` exist, None: all."""

    def __init__(self, at: Value, lanes: Value | None = None) -> None:
        self.at, self._lanes = at, lanes

    def behind(self, elements: Value) -> Window:
        """The window so many elements further on."""
        return Window(self.at + elements, self._lanes)

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
        return self._widened(window.load(I16, self._source))

    def _widened(self, pattern: Value) -> Value:
        if self._dtype == "bfloat16":
            return (pattern.to("zext", I32) << 16).as_float
        return pattern.to("bitcast", ir.HalfType()).to("fpext", F32)

    def load_or_nan(self, window: Window) -> Value:
        """NaN in lanes that do not exist."""
        if self._dtype == "float32":
            return window.load(F32, self._source, float("nan"))
        pattern = window.load(I16, self._source, _NAN[self._dtype])
        return self._widened(pattern)

    def store(self, window: Window, value: Value) -> None:
        if self._dtype == "bfloat16":
            up = value.bits + 0x8000  # a NaN stays one: those of bfloat16 have an empty lower half
            even = self._code.pick((up & 0xFFFF).equals(0), up & 0xFFFEFFFF, up)
            value = (even >> 16).to("trunc", I16)
        elif self._dtype == "float16":
            value = value.to("fptrunc", ir.HalfType()).to("bitcast", I16)
        window.store(value, self._target)


class Codes:
    """8-bit codes of the elements."""

    def __init__(self, job: Job) -> None:
        self._address = job.integer(slots.CODES)

    def load(self, window: Window) -> Value:
        return window.load(I8, self._address).to("zext", I32)

    def store(self, window: Window, code: Value) -> None:
        window.store(code.to("trunc", I8), self._address)


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
    rows_before = start // pick(slices, inner, stop)
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


class LogicalRows:
    """A walk over the rows of a tensor that lies in an order of its own: where each begins, and its logical index.

    Two rows are a pair if each element of the first has a neighbour in the second that shares its random number.
    """

    def __init__(self, job: Job, first: Value, last: Value, offset: Value) -> None:
        self.code, self._last, self._row = job.code, last, job.integer(slots.ROW)
        self._counts = [job.integer(slots.COUNT_1), job.integer(slots.COUNT_2)]
        self._strides = [job.integer(slot) for slot in (slots.STRIDE_1, slots.STRIDE_2, slots.STRIDE_3)]
        self._step = job.integer(slots.STEP)
        self._pairs = job.integer(slots.PAIRS).equals(1) & (offset & 1).equals(0)
        whole = first // self._row
        turns = [whole % self._counts[0], whole // self._counts[0] % self._counts[1]]
        turns.append(whole // self._counts[0] // self._counts[1])
        moved = [turn * stride for turn, stride in zip(turns, self._strides, strict=True)]
        self._position, self._begin = self.code.variable(first), self.code.variable(whole * self._row)
        self._turns = [self.code.variable(turns[0]), self.code.variable(turns[1])]
        self._index = self.code.variable(offset + moved[0] + moved[1] + moved[2])

    def left(self) -> Value:
        return self._position.get() < self._last

    def is_pair(self) -> Value:
        """Whether a pair of whole rows comes next."""
        begin, even = self._begin.get(), (self._index.get() & 1).equals(0)
        whole = self._position.get().equals(begin) & (begin + self._row * 2 <= self._last)
        return self._pairs & even & whole

    def next(self) -> tuple[Value, Value, Value]:
        """What is left of a row: position, end, logical index; the walk goes on behind it."""
        position, begin, index = self._position.get(), self._begin.get(), self._index.get()
        after = begin + self._row
        end = _smaller(after, self._last)
        self._position.set(end)
        self._begin.set(after)
        self._turn()
        return position, end, index + (position - begin) * self._step

    def _turn(self) -> None:
        pick, (first, second), (row, turn, last) = self.code.pick, self._counts, self._strides
        following = self._turns[0].get() + 1
        wraps = following.equals(first)
        self._turns[0].set(pick(wraps, 0, following))
        following = self._turns[1].get() + 1
        wraps_too = wraps & following.equals(second)
        self._turns[1].set(pick(wraps_too, 0, pick(wraps, following, self._turns[1].get())))
        back = row * (first - 1)
        moved = pick(wraps_too, last - back - turn * (second - 1), pick(wraps, turn - back, row))
        self._index.set(self._index.get() + moved)

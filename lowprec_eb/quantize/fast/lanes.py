"""The language that the kernels are written in: Python that writes LLVM instructions when it runs.

A :class:`Value` is a number at the kernel's run time: one, or ``LANES`` side by side in a vector. Operators compute
with it, so arithmetic reads as usual; :class:`Code` has loops, branches, variables and memory. Imported only when a
kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

LANES = 16
F32, I1, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (1, 8, 16, 32, 64))

_KERNEL = ir.FunctionType(I32, [I64] * 3)


def vector(element: Any, count: int = LANES) -> Any:
    return ir.VectorType(element, count)


_Operator = Callable[["Value", Any], "Value"]


def _binary(of_integers: str, of_floats: str = "") -> _Operator:
    def operate(self: Value, other: Any) -> Value:
        a, b = self.code.alike(self, other)
        return self.code.value(getattr(self.code.builder, of_floats if a.element == F32 else of_integers)(a.ir, b.ir))

    return operate


def _comparison(sign: str) -> _Operator:
    def compare(self: Value, other: Any) -> Value:
        a, b = self.code.alike(self, other)
        if a.element == F32:
            return self.code.value(self.code.builder.fcmp_ordered(sign, a.ir, b.ir))
        # 32 bits are bit patterns, 64 bits are counts
        compared = self.code.builder.icmp_signed if a.element == I64 else self.code.builder.icmp_unsigned
        return self.code.value(compared(sign, a.ir, b.ir))

    return compare


class Value:
    """A number, or one in each lane: float32, 32-bit pattern, 64-bit integer, or truth."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.ir = code, value

    @property
    def is_vector(self) -> bool:
        return isinstance(self.ir.type, ir.VectorType)

    @property
    def element(self) -> Any:
        return self.ir.type.element if self.is_vector else self.ir.type

    __add__ = _binary("add", "fadd")
    __sub__ = _binary("sub", "fsub")
    __mul__ = _binary("mul", "fmul")
    __truediv__ = _binary("", "fdiv")
    __floordiv__ = _binary("sdiv")  # of counts, which are not negative
    __mod__ = _binary("srem")
    __and__ = _binary("and_")
    __or__ = _binary("or_")
    __xor__ = _binary("xor")
    __rshift__ = _binary("lshr")
    __lshift__ = _binary("shl")
    __lt__ = _comparison("<")
    __le__ = _comparison("<=")
    __gt__ = _comparison(">")
    __ge__ = _comparison(">=")

    equals = _comparison("==")

    def signed_shift(self, count: int) -> Value:
        """To the right, with copies of the sign."""
        a, b = self.code.alike(self, count)
        return self.code.value(self.code.builder.ashr(a.ir, b.ir))

    def to(self, operation: str, element: Any) -> Value:
        """Converted by an LLVM instruction, lane by lane."""
        wanted = vector(element, self.ir.type.count) if self.is_vector else element
        return self.code.value(getattr(self.code.builder, operation)(self.ir, wanted))

    @property
    def bits(self) -> Value:
        return self.to("bitcast", I32)

    @property
    def as_float(self) -> Value:
        """The number whose bit pattern this is."""
        return self.to("bitcast", F32)

    def math(self, name: str, *others: Any) -> Value:
        """LLVM's function of this name: ``roundeven``, ``floor``, ``fabs``, ``umax``."""
        operands = [part.ir for part in self.code.alike(self, *others)] if others else [self.ir]
        return self.code.call(f"llvm.{name}", self.ir.type, operands, [self.ir.type])

    @property
    def magnitude(self) -> Value:
        return self.math("fabs")

    def largest_lane(self) -> Value:
        """Of bit patterns."""
        return self.reduced("umax")

    def reduced(self, name: str) -> Value:
        """All lanes by LLVM's ``umax``, ``fmin``, ``fmax``."""
        return self.code.call(f"llvm.vector.reduce.{name}", self.element, [self.ir], [self.ir.type])


class Variable:
    """A place whose content changes; the optimiser keeps it in a register."""

    def __init__(self, code: Code, start: Value) -> None:
        self._code = code
        with code.builder.goto_entry_block():
            self._place = code.builder.alloca(start.ir.type)
        self.set(start)

    def get(self) -> Value:
        return self._code.value(self._code.builder.load(self._place))

    def set(self, value: Value) -> None:
        self._code.builder.store(value.ir, self._place)


class Code:
    """One function ``name(job, first, last)`` of 64-bit integers, which returns 0."""

    def __init__(self, name: str) -> None:
        self.module = ir.Module(name)
        function = ir.Function(self.module, _KERNEL, name)
        self.builder = ir.IRBuilder(function.append_basic_block())
        self.arguments = [self.value(argument) for argument in function.args]

    def finished(self) -> str:
        """The module as LLVM's text."""
        self.builder.ret(ir.Constant(I32, 0))
        return str(self.module)

    def value(self, value: Any) -> Value:
        return Value(self, value)

    def constant(self, kind: Any, number: Any) -> Value:
        """Of an LLVM type; a list is one number a lane."""
        if isinstance(kind, ir.VectorType) and not isinstance(number, list):
            number = [number] * kind.count
        return self.value(ir.Constant(kind, number))

    def spread(self, value: Value, count: int = LANES) -> Value:
        """The number in every lane."""
        empty = ir.Constant(vector(value.element, count), ir.Undefined)
        first = self.builder.insert_element(empty, value.ir, ir.Constant(I32, 0))
        return self.value(self.builder.shuffle_vector(first, empty, ir.Constant(vector(I32, count), [0] * count)))

    def alike(self, *parts: Any) -> list[Value]:
        """Numbers of Python become constants, and scalars vectors beside a vector."""
        values = [part for part in parts if isinstance(part, Value)]
        wide = next((part for part in values if part.is_vector), values[0])
        kind = wide.ir.type
        made = [part if isinstance(part, Value) else self.constant(kind, part) for part in parts]
        return [self.spread(part, kind.count) if wide.is_vector and not part.is_vector else part for part in made]

    def pick(self, condition: Value, yes: Any, no: Any) -> Value:
        yes, no = self.alike(yes, no)
        return self.value(self.builder.select(condition.ir, yes.ir, no.ir))

    def call(self, name: str, result: Any, operands: list[Any], overloads: list[Any]) -> Value:
        """A function of LLVM's, named after the types in ``overloads``."""
        full = ".".join([name, *map(_suffix, overloads)])
        function = self.module.globals.get(full)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [part.type for part in operands]), full)
        return self.value(self.builder.call(function, operands))

    # ---- control flow --------------------------------------------------------------------------------------------

    def variable(self, start: Value) -> Variable:
        return Variable(self, start)

    @contextmanager
    def while_(self, condition: Callable[[], Value]) -> Iterator[None]:
        test, body, after = (self.builder.append_basic_block() for _ in range(3))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(condition().ir, body, after)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(test)
        self.builder.position_at_end(after)

    def when(self, condition: Value) -> Any:
        """A context: code that runs only then."""
        return self.builder.if_then(condition.ir)

    def when_else(self, condition: Value) -> Any:
        """A context of two."""
        return self.builder.if_else(condition.ir)

    def choose(self, condition: Value, yes: Callable[[], Value], no: Callable[[], Value]) -> Value:
        """What one of two pieces of code computes; only that one runs."""
        with self.when_else(condition) as (then, otherwise):
            with then:
                a, end_of_a = yes(), self.builder.block
            with otherwise:
                b, end_of_b = no(), self.builder.block
        joined = self.builder.phi(a.ir.type)
        joined.add_incoming(a.ir, end_of_a)
        joined.add_incoming(b.ir, end_of_b)
        return self.value(joined)

    def run(self, address: Value, arguments: list[Value]) -> None:
        """Call the function of this kind that lies there."""
        function = self.builder.inttoptr(address.ir, _KERNEL.as_pointer())
        self.builder.call(function, [argument.ir for argument in arguments])

    # ---- memory --------------------------------------------------------------------------------------------------

    def _pointer(self, kind: Any, address: Value) -> Any:
        return self.builder.inttoptr(address.ir, kind.as_pointer())

    def load(self, kind: Any, address: Value) -> Value:
        element = kind.element if isinstance(kind, ir.VectorType) else kind
        return self.value(self.builder.load(self._pointer(kind, address), align=bytes_of(element)))

    def store(self, value: Value, address: Value) -> None:
        self.builder.store(value.ir, self._pointer(value.ir.type, address), align=bytes_of(value.element))

    def load_lanes(self, kind: Any, address: Value, lanes: Value, otherwise: Any) -> Value:
        """A vector of which only ``lanes`` are read."""
        pointer, rest = self._pointer(kind, address), self.constant(kind, otherwise)
        operands = [pointer, ir.Constant(I32, bytes_of(kind.element)), lanes.ir, rest.ir]
        return self.call("llvm.masked.load", kind, operands, [kind, pointer.type])

    def store_lanes(self, value: Value, address: Value, lanes: Value) -> None:
        pointer = self._pointer(value.ir.type, address)
        operands = [value.ir, pointer, ir.Constant(I32, bytes_of(value.element)), lanes.ir]
        self.call("llvm.masked.store", ir.VoidType(), operands, [value.ir.type, pointer.type])

    def count_up(self, address: Value) -> Value:
        """The number there, which grows by 1 before any other thread reads it."""
        place = self._pointer(I64, address)
        return self.value(self.builder.atomic_rmw("add", place, ir.Constant(I64, 1), "monotonic"))


def bytes_of(element: Any) -> int:
    """Bytes."""
    return 4 if element == F32 else int(element.width) // 8


def _suffix(kind: Any) -> str:
    """A type in the name of an LLVM function."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_suffix(kind.element)}"
    if kind.is_pointer:
        return "p0"
    return "f32" if kind == F32 else f"i{kind.width}"

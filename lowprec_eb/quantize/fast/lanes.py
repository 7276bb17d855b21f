"""The machine operations that the kernels are written in: raw pointers, stack tiles, 32-bit lanes, bit casts.

numba widens uint32 arithmetic to 64 bits, which halves the lanes of a vector; each function here is one LLVM
instruction instead. Imported only when a kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

f32, u16, u32, u64, i64 = types.float32, types.uint16, types.uint32, types.uint64, types.int64
_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_NATIVE = {f32: _F32, u16: _I16, u32: _I32, u64: _I64, i64: _I64}


def _pointer(element: Any) -> Any:
    @intrinsic
    def at_address(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), emit

    return at_address


f32_at, u16_at, u32_at, u64_at, i64_at = map(_pointer, (f32, u16, u32, u64, i64))


def stack_tile(element: Any, count: int) -> Any:
    """A function that gives the address of ``count`` elements on the stack, aligned to a cache line."""

    @intrinsic
    def tile(typing: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            with builder.goto_entry_block():
                place = builder.alloca(ir.ArrayType(_NATIVE[element], count))
                place.align = 64
            return builder.ptrtoint(place, _I64)

        return types.int64(), emit

    return tile


def _instruction(signature: Any, emit_one: Callable[..., Any]) -> Any:
    """An intrinsic of the given numba signature; ``emit_one(builder, *values)`` makes its instruction."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return emit_one(builder, *args)

    match len(signature.args):
        case 1:

            @intrinsic
            def one(typing: Any, a: Any) -> Any:
                return signature, emit

            return one
        case 2:

            @intrinsic
            def two(typing: Any, a: Any, b: Any) -> Any:
                return signature, emit

            return two

    @intrinsic
    def three(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return signature, emit

    return three


def _integer(name: str) -> Any:
    return _instruction(u32(u32, u32), lambda builder, a, b: getattr(builder, name)(a, b))


add, sub, both, either, differ, shift_right, shift_left = map(
    _integer, ("add", "sub", "and_", "or_", "xor", "lshr", "shl")
)
below = _instruction(types.boolean(u32, u32), lambda builder, a, b: builder.icmp_unsigned("<", a, b))
pick_bits = _instruction(u32(types.boolean, u32, u32), lambda builder, c, a, b: builder.select(c, a, b))
pick = _instruction(f32(types.boolean, f32, f32), lambda builder, c, a, b: builder.select(c, a, b))
bits_of = _instruction(u32(f32), lambda builder, a: builder.bitcast(a, _I32))
float_of = _instruction(f32(u32), lambda builder, a: builder.bitcast(a, _F32))
to_float = _instruction(f32(u32), lambda builder, a: builder.sitofp(a, _F32))  # of values below 2**31
low_half = _instruction(u16(u32), lambda builder, a: builder.trunc(a, _I16))
widened = _instruction(u32(u16), lambda builder, a: builder.zext(a, _I32))
half_to_float = _instruction(f32(u16), lambda b, a: b.fpext(b.bitcast(a, ir.HalfType()), _F32))
float_to_half = _instruction(u16(f32), lambda b, a: b.bitcast(b.fptrunc(a, ir.HalfType()), _I16))


def _math(name: str) -> Any:
    def emit_one(builder: Any, a: Any) -> Any:
        function = ir.FunctionType(_F32, [_F32])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.f32"), [a])

    return _instruction(f32(f32), emit_one)


round_even, round_down, magnitude = map(_math, ("roundeven", "floor", "fabs"))


def largest_of(count: int) -> Any:
    """The largest of ``count`` float32 bit patterns without their signs, from an address, as one vector reduction."""

    def emit_one(builder: Any, address: Any) -> Any:
        vector = ir.VectorType(_I32, count)
        values = builder.load(builder.inttoptr(address, vector.as_pointer()), align=4)
        values = builder.and_(values, ir.Constant(vector, [0x7FFFFFFF] * count))
        name, function = f"llvm.vector.reduce.umax.v{count}i32", ir.FunctionType(_I32, [vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [values])

    return _instruction(u32(i64), emit_one)


def largest_of_halves(count: int) -> Any:
    """:func:`largest_of` for 16-bit patterns."""

    def emit_one(builder: Any, address: Any) -> Any:
        vector = ir.VectorType(_I16, count)
        values = builder.load(builder.inttoptr(address, vector.as_pointer()), align=2)
        values = builder.and_(values, ir.Constant(vector, [0x7FFF] * count))
        name, function = f"llvm.vector.reduce.umax.v{count}i16", ir.FunctionType(_I16, [vector])
        return builder.zext(
            builder.call(cgutils.get_or_insert_function(builder.module, function, name), [values]), _I32
        )

    return _instruction(u32(i64), emit_one)


@intrinsic
def widest_vectors(typing: Any) -> Any:
    """Let this function use 512-bit vectors where the machine has them; it is then not inlined."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for attribute in ('"prefer-vector-width"="512"', "noinline"):
            set.add(builder.function.attributes, attribute)  # llvmlite's own add() knows no string attributes
        return context.get_dummy_value()

    return types.void(), emit

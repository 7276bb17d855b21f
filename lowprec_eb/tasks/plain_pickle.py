"""Pickles of plain data: dicts, lists, numbers, texts, bytes and arrays of whole numbers. Nothing in them is run.

A pickle is a program, and unpickling runs it. Of what it may call, here only the names that numpy's own pickles use
exist, and behind those stand small classes of this file instead of numpy's: no pickle reaches a function of somebody
else, makes an array of pointers, or one larger than its bytes. ("Restricting Globals" in the docs of Python's pickle.)
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WHOLE_NUMBERS = frozenset(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))


def read_plain_pickle(path: Path) -> Mapping[str, Any]:
    """Read a pickled dict with text keys (those of Python 2, bytes, come as text); texts of Python 2 stay bytes.

    Arrays of whole numbers come as arrays that cannot be written to. Raises ValueError, naming the file, for a
    damaged pickle, one that is no such dict, and one that asks for anything else, which it names and does not run.
    """
    data = path.read_bytes()
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(content, dict):
            raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, expected a dict")
        return {_text(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}
    except Exception as error:  # a damaged pickle may raise anything
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, pickle.UnpicklingError) else str(error)
        raise ValueError(f"{path}: is not a pickle of plain data ({reason})") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        found = _STAND_INS.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which image data have no use for and which could run anything; it was "
                "not run. Get the file anew from a source that you trust"
            )
        return found


class _StandIn:
    def __setstate__(self, state: Any) -> None:  # without it, pickle would set any attribute
        raise pickle.UnpicklingError(f"unexpected state for {type(self).__name__.strip('_')}")


class _Dtype(_StandIn):
    """``numpy.dtype(code, align, copy)`` and its state, of which the byte order counts."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        if _text(code) not in _WHOLE_NUMBERS:
            raise pickle.UnpicklingError(f"an array of dtype {_text(code)}; only whole numbers are read")
        self.code = _text(code)
        self.dtype = np.dtype(self.code)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        if order not in tuple("<>|="):
            raise pickle.UnpicklingError(f"an array of byte order {order!r}")
        self.dtype = np.dtype(order + self.code)


class _Array(_StandIn):
    """What is made with no data, which come with the state: (version, shape, dtype, whether Fortran order, bytes)."""

    array: NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _filled(data, dtype, shape, "F" if fortran else "C")


class _Reconstruct(_StandIn):
    """``numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")``."""

    def __new__(cls, kind: Any, shape: Any, code: Any) -> _Array:  # type: ignore[misc]  # it stands for a function
        return _Array()


class _FromBuffer(_StandIn):
    """``numpy.core.numeric._frombuffer(bytes, dtype, shape, order)``, of pickle protocol 5."""

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any) -> _Array:  # type: ignore[misc]
        made = _Array()
        made.array = _filled(data, dtype, shape, order)
        return made


class _Encode(_StandIn):
    """``_codecs.encode(text, "latin1")``: how Python 3 writes bytes in old protocols."""

    def __new__(cls, text: Any, encoding: Any) -> bytes:  # type: ignore[misc]
        if _text(encoding) != "latin1":
            raise pickle.UnpicklingError(f"bytes encoded in {_text(encoding)}; latin1 is what pickle writes")
        return bytes(str(text), "latin1")


_STAND_INS: Mapping[tuple[str, str], type[_StandIn]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    # numpy 2 renamed numpy.core to numpy._core.
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
}


def _filled(data: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError("an array that is not one of whole numbers")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order="F" if _text(order) == "F" else "C")


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)

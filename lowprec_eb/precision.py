"""Precision: which number format each operand of training has. :mod:`lowprec_eb.recipes` names the common ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from lowprec_eb.formats import Format, Int, ScaledFloat, as_format
from lowprec_eb.quantize import BACKEND_NAMES, ROUNDINGS

GEMMS: tuple[str, ...] = ("output", "grad_input", "grad_weight")
READERS: dict[str, tuple[str, ...]] = {  # the GEMMs that read an operand
    "weight": ("output", "grad_input"),
    "activation": ("output", "grad_weight"),
    "error": ("grad_input", "grad_weight"),
}
LAYER_OPERANDS: tuple[str, ...] = ("output", "normalization", "accumulator")
OPTIMIZER_OPERANDS: tuple[str, ...] = ("gradient", "update", "momentum", "second_moment", "master")
OPERANDS: tuple[str, ...] = (*READERS, *LAYER_OPERANDS, *OPTIMIZER_OPERANDS)
BLOCK_AXES: tuple[str, ...] = ("reduction", "format")
HADAMARD_SIZES: tuple[int, ...] = tuple(2**n for n in range(1, 11))
FIRST, LAST, TYPE = "@first", "@last", "type:"  # override patterns that are no layer names


@dataclass(frozen=True, repr=False)
class Rounded:
    """A format, with what goes with it where the operand differs from its precision's defaults.

    Args:
        fmt: anything that :func:`lowprec_eb.quantize` takes as a format: a format, its name, a qtorch number.
        rounding: None is the precision's. One that is given stays when the precision's changes.
        running: momentum m, 0 < m < 1, of a running mean of the range (new = m * old + (1 - m) * the batch's), which
            evaluation uses in place of the tensor's own range. For formats that take a given scale: ``Int`` and
            ``ScaledFloat`` of one level, without blocks of a size.
        prescale: after the scales are found the elements are multiplied by it, and divided by it when they are rounded:
            headroom, so that nothing saturates. For formats with one scale a block and no zero point.

    Raises:
        ValueError: a value that is not allowed; the message names the field and what may stand there.

    Source: the running range is that of Banner et al. 2018 as FracTrain (Fu et al. 2020) uses it.
    """

    fmt: Format
    rounding: str | None = None
    running: float | None = None
    prescale: float = 1.0

    def __post_init__(self) -> None:
        if self.fmt is None:
            raise ValueError("Rounded: fmt must be a number format, got None; write None in place of the Rounded")
        object.__setattr__(self, "fmt", as_format(self.fmt))
        if self.rounding is not None:
            check_choice("Rounded", "rounding", self.rounding, ROUNDINGS)
        if self.running is not None:
            self._check_running(self.running)
        if not _is_number(self.prescale) or not 0 < self.prescale < math.inf:
            raise ValueError(f"Rounded: prescale must be a finite number above 0, got {self.prescale!r}")
        object.__setattr__(self, "prescale", float(self.prescale))
        if self.prescale != 1 and (self.fmt.blocks is None or self.fmt.has_zero_point or self.fmt.tensor_scale_bits):
            raise ValueError(
                f"Rounded: prescale needs a format with one scale a block, and no zero point: {self.fmt!r}"
            )

    def _check_running(self, running: float) -> None:
        if not _is_number(running) or not 0 < running < 1:
            raise ValueError(f"Rounded: running is a momentum and must be between 0 and 1, got {running!r}")
        fmt = self.fmt
        if not isinstance(fmt, Int | ScaledFloat) or fmt.block is not None or fmt.tensor_scale_bits:
            raise ValueError(
                "Rounded: running needs a format whose scale can be given, Int or ScaledFloat of one level without "
                f"blocks of a size, got {fmt!r}"
            )

    def __repr__(self) -> str:
        return _constructor_call(self)


@dataclass(frozen=True, repr=False)
class PerGemm:
    """What differs between the GEMMs of a layer; None is float32 (for ``Precision.hadamard``: no rotation).

    Args:
        output, grad_input, grad_weight: a format, a :class:`Rounded`, or the size of a rotation.

    Raises:
        ValueError: a value that is none of these.
    """

    output: Format | Rounded | int | None = None
    grad_input: Format | Rounded | int | None = None
    grad_weight: Format | Rounded | int | None = None

    def __post_init__(self) -> None:
        for gemm in GEMMS:
            if not _is_whole(value := getattr(self, gemm)):
                object.__setattr__(self, gemm, _rounded_or_plain(f"PerGemm: {gemm}", value))

    def __repr__(self) -> str:
        return _constructor_call(self)


@dataclass(frozen=True, repr=False)
class Precision:
    """A format for each operand, and how it is rounded. None leaves an operand in float32.

    A layer computes three GEMMs: ``output`` reads activation and weight, ``grad_input`` reads error and weight,
    ``grad_weight`` reads activation and error. Equal meanings compare equal, and ``repr`` is the constructor call.

    Args:
        weight, activation, error: as the GEMMs read them; ``error`` is the gradient w.r.t. the layer's output.
            A :class:`PerGemm` sets them apart for the two GEMMs that read each.
        output: a layer's result, as it is written.
        normalization: the result of normalisation layers, and the error with respect to it.
        accumulator: the result of each GEMM as it leaves the accumulator, before the bias.
        gradient: the optimizer's, before the step. update: what the step adds to a weight. momentum, second_moment,
            master (the copy of the weights that training keeps): after it.
        rounding: in training, of every operand that names none. Evaluation always rounds to nearest, as inference
            hardware would.
        hadamard: both operands of a GEMM are rotated by a Hadamard matrix of that size with random signs, along the
            dimension that the GEMM sums over, before they are rounded: outliers spread, the product stays.
        accumulator_chunk: each GEMM sums this many products in float32 (float64 operands: in float64), rounds such a
            partial sum to the ``accumulator`` format, adds it to a running sum and rounds that to the format too. None
            rounds each GEMM's finished result, once.
        block_axis: blocks of a size (``MX``, ``block=``) run along the dimension that the GEMM sums over
            (``"reduction"``, as hardware needs them), or along the axis that the format names (``"format"``).
        vectors: whether the optimizer's formats hold for vectors too (biases, normalisation parameters).
        overrides: of what the layers do (the optimizer rounds every parameter alike): pairs of a pattern and the
            precision that a layer gets in place of this one; the first match counts. A pattern is a layer
            name (shell style), ``"@first"`` or ``"@last"`` (layer with a GEMM), or ``"type:Conv2d"``: the name of the
            layer's class or of a base class.
        backend: of :func:`lowprec_eb.quantize`; overrides share it.

    Raises:
        ValueError: naming precision and field, what is allowed, and the nearest valid name.

    Source of accumulator_chunk: Wang et al. 2018 ("Training Deep Neural Networks with 8-bit Floating Point Numbers"),
    with chunks of 64 and an accumulator of 6 exponent and 9 mantissa bits; theirs rounds within a chunk too. Analysed
    by Sakr et al. 2019 ("Accumulation Bit-Width Scaling For Ultra-Low Precision Training Of Deep Networks").
    """

    name: str = "custom"
    weight: Format | Rounded | PerGemm | None = None
    activation: Format | Rounded | PerGemm | None = None
    output: Format | Rounded | None = None
    error: Format | Rounded | PerGemm | None = None
    normalization: Format | Rounded | None = None
    accumulator: Format | Rounded | None = None
    gradient: Format | Rounded | None = None
    update: Format | Rounded | None = None
    momentum: Format | Rounded | None = None
    second_moment: Format | Rounded | None = None
    master: Format | Rounded | None = None
    rounding: str = "nearest"
    hadamard: int | PerGemm | None = None
    accumulator_chunk: int | None = None
    block_axis: str = "reduction"
    vectors: bool = False
    overrides: tuple[tuple[str, Precision], ...] = ()
    backend: str = "auto"

    def __post_init__(self) -> None:
        where = f"precision {self.name!r}"
        if not isinstance(self.name, str) or not self.name.isprintable():
            raise ValueError(f"{where}: name must be printable text: it labels tables and pictures")
        for operand in OPERANDS:
            object.__setattr__(self, operand, _operand(where, operand, getattr(self, operand)))
        object.__setattr__(self, "hadamard", _rotation(f"{where}: hadamard", self.hadamard))
        object.__setattr__(self, "overrides", tuple(_overrides(where, self.overrides)))
        _check_chunk(where, self.accumulator_chunk, self.accumulator)
        check_choice(where, "rounding", self.rounding, ROUNDINGS)
        check_choice(where, "block_axis", self.block_axis, BLOCK_AXES)
        check_choice(where, "backend", self.backend, BACKEND_NAMES)
        if not isinstance(self.vectors, bool):
            raise ValueError(f"{where}: vectors must be True or False, got {self.vectors!r}")

    def of(self, operand: str, gemm: str | None = None) -> Rounded | None:
        """How ``operand`` is rounded, its rounding filled in; None is float32.

        Args:
            gemm: which GEMM reads it: needed for weight, activation and error, and for these alone.

        Raises:
            ValueError: an unknown operand; a GEMM that does not read it; a GEMM missing, or given where none reads it.
        """
        check_choice(f"precision {self.name!r}", "operand", operand, OPERANDS)
        value = getattr(self, operand)
        if operand in READERS:
            if gemm not in READERS[operand]:
                readers = " or ".join(map(repr, READERS[operand]))
                raise ValueError(f"{operand} is read by two GEMMs: gemm must be {readers}, got {gemm!r}")
            value = getattr(value, gemm) if isinstance(value, PerGemm) else value
        elif gemm is not None:
            raise ValueError(f"{operand} is the same for every GEMM: leave gemm out, got {gemm!r}")
        if value is None:
            return None
        if not isinstance(value, Rounded):
            return Rounded(value, self.rounding)
        return value if value.rounding is not None else replace(value, rounding=self.rounding)

    def rotation(self, gemm: str) -> int | None:
        """Size of the Hadamard matrix that rotates both operands of ``gemm``; None is no rotation.

        Raises:
            ValueError: there is no such GEMM.
        """
        check_choice(f"precision {self.name!r}", "gemm", gemm, GEMMS)
        size: int | None = getattr(self.hadamard, gemm) if isinstance(self.hadamard, PerGemm) else self.hadamard
        return size

    def of_layer(self, layer: str, *, types: Sequence[str] = (), first: bool = False, last: bool = False) -> Precision:
        """The precision of one layer, overrides applied (those of the override that matched too).

        Args:
            layer: its name in the model. types: names of its class and of the base classes.
            first, last: whether it is the first, the last layer with a GEMM.
        """
        for pattern, precision in self.overrides:
            if _matches(pattern, layer, types, first, last):
                own = replace(precision, backend=self.backend)
                return own.of_layer(layer, types=types, first=first, last=last)
        return self

    def operand_format(self, layer: str, gemm: str, operand: str) -> Format | None:
        """The format in which ``gemm`` of ``layer`` reads ``operand`` (``energy_models.PrecisionLike``), or sums.

        Overrides by name apply; the others need a model and are applied by :func:`lowprec_eb.lower`.
        """
        rounded = self.of_layer(layer).in_gemm(gemm, operand)
        return None if rounded is None else rounded.fmt

    def in_gemm(self, gemm: str, operand: str) -> Rounded | None:
        """How ``gemm`` reads ``operand``, or rounds what it sums (``"accumulator"``); None is float32.

        A product of two activations has two gradients, both named grad_input: each reads the other activation as it is
        read again in the backward pass.

        Raises:
            ValueError: there is no such GEMM, or no GEMM reads ``operand``.
        """
        check_choice(f"precision {self.name!r}", "gemm", gemm, GEMMS)
        if operand == "accumulator":
            return self.of(operand)
        if operand not in READERS:
            raise ValueError(f"a GEMM reads weight, activation or error, not {operand!r}")
        return self.of(operand, gemm if gemm in READERS[operand] else READERS[operand][-1])

    def parameter_rounded(self, operand: str, dims: int) -> Rounded | None:
        """How the optimizer rounds gradient, update, momentum, second_moment or master of a parameter of ``dims`` axes.

        Raises:
            ValueError: ``operand`` is none of these.
        """
        check_choice(f"precision {self.name!r}", "operand", operand, OPTIMIZER_OPERANDS)
        return self.of(operand) if dims >= 2 or self.vectors else None

    def parameter_format(self, operand: str, dims: int) -> Format | None:
        """The format of :meth:`parameter_rounded`."""
        rounded = self.parameter_rounded(operand, dims)
        return None if rounded is None else rounded.fmt

    def __repr__(self) -> str:
        return _constructor_call(self)


def nearest(word: object, names: Collection[str]) -> str:
    """``"; did you mean ...?"``, or nothing where no name is near."""
    close = get_close_matches(str(word), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- checking and one spelling for each meaning ------------------------------------------------------------------


def _operand(where: str, operand: str, value: Any) -> Format | Rounded | PerGemm | None:
    """``value`` of a field, in its one spelling."""
    if not isinstance(value, PerGemm):
        rounded = _rounded_or_plain(f"{where}: {operand}", value)
        if operand not in READERS and isinstance(rounded, Rounded):
            for field in ("running", "prescale"):
                if getattr(rounded, field) != getattr(Rounded, field):
                    raise ValueError(f"{where}: {operand}: {field} is for what GEMMs read: {', '.join(READERS)}")
        return rounded
    if operand not in READERS:
        raise ValueError(f"{where}: {operand} is the same for every GEMM: give one format in place of {value!r}")
    readers = READERS[operand]
    for gemm in GEMMS:
        of_gemm = getattr(value, gemm)
        if _is_whole(of_gemm):
            raise ValueError(f"{where}: {operand}: {gemm}: not a number format: {of_gemm}")
        if of_gemm is not None and gemm not in readers:
            raise ValueError(f"{where}: {operand} is not read by {gemm}, only by {' and '.join(readers)}")
    merged: Format | Rounded | PerGemm | None = _merged(value, readers)
    return merged


def _rounded_or_plain(where: str, value: Any) -> Format | Rounded | None:
    if value is None:
        return None
    if isinstance(value, Rounded):
        return value.fmt if value == Rounded(value.fmt) else value
    try:
        return as_format(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _rotation(where: str, value: Any) -> int | PerGemm | None:
    per_gemm = value if isinstance(value, PerGemm) else PerGemm(value, value, value) if _is_whole(value) else None
    if per_gemm is None and value is not None:
        raise ValueError(f"{where} must be a size, a PerGemm of sizes, or None, got {value!r}")
    for gemm in GEMMS:
        size = getattr(per_gemm, gemm, None)
        if size is not None and size not in HADAMARD_SIZES:
            raise ValueError(f"{where}: must be a power of two from 2 to 1024, got {size!r}")
    merged: int | PerGemm | None = None if per_gemm is None else _merged(per_gemm, GEMMS)
    return merged


def _check_chunk(where: str, chunk: object, accumulator: object) -> None:
    if chunk is None:
        return
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"{where}: accumulator_chunk must be a number of products, 1 or more, or None, got {chunk!r}")
    if accumulator is None:
        raise ValueError(
            f"{where}: accumulator_chunk={chunk} needs a format to round the running sum to: give accumulator, or None "
            "for accumulator_chunk too"
        )


def _merged(value: PerGemm, readers: Sequence[str]) -> Any:
    """The one value of all GEMMs that read the operand, where they agree."""
    values = [getattr(value, gemm) for gemm in readers]
    return values[0] if all(other == values[0] for other in values) else value


def _overrides(where: str, overrides: Any) -> Iterator[tuple[str, Precision]]:
    if isinstance(overrides, str) or not isinstance(overrides, Sequence):
        raise ValueError(f"{where}: overrides must be pairs of a pattern and a precision, got {overrides!r}")
    for place, pair in enumerate(overrides):
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(f"{where}: overrides[{place}] must be a pair of a pattern and a precision, got {pair!r}")
        pattern, value = pair
        if pattern.startswith("@"):
            check_choice(where, "override pattern", pattern, (FIRST, LAST))
        if pattern in ("", TYPE):
            raise ValueError(f"{where}: overrides[{place}]: {pattern!r} matches no layer")
        if not isinstance(value, Precision):
            hint = f"; lp.precision({value!r}) is the recipe" if isinstance(value, str) else ""
            raise ValueError(f"{where}: override {pattern!r} must be a Precision, got {value!r}{hint}")
        yield pattern, value


def _matches(pattern: str, layer: str, types: Sequence[str], first: bool, last: bool) -> bool:
    if pattern in (FIRST, LAST):
        return first if pattern == FIRST else last
    if pattern.startswith(TYPE):
        return any(fnmatchcase(name, pattern.removeprefix(TYPE)) for name in types)
    return fnmatchcase(layer, pattern)


def check_choice(where: str, field: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        hint = nearest(value, choices)
        raise ValueError(f"{where}: {field} must be one of {', '.join(choices)}, got {value!r}{hint}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def given_fields(obj: Any) -> dict[str, Any]:
    """The fields of a dataclass that do not have their default."""
    values = ((f.name, getattr(obj, f.name), f.default) for f in fields(obj))
    return {name: value for name, value, default in values if default is MISSING or value != default}


def _constructor_call(obj: Any) -> str:
    return f"{type(obj).__name__}({', '.join(f'{name}={value!r}' for name, value in given_fields(obj).items())})"

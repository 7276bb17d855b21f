"""What the Triton back end costs on a GPU, in copies of the same tensor: `benchmarks/quantizers_gpu.py OUT.json`.

Each time is the median of several rounds between two CUDA events; a round's copy runs right beside it. The overhead of
a call is the time per call of many on a small tensor, on the CPU's clock.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lowprec_eb as lp
from lowprec_eb.formats import Format, as_format
from lowprec_eb.quantize import reference, triton_backend
from lowprec_eb.versions import versions

ROUNDS = 20
SHAPE = (25_000, 4_000)
FORMATS: dict[str, Format] = {
    "fixed8": as_format("fixed8"),
    "bf16": lp.BF16,
    "fp8_e4m3": lp.FP8_E4M3,
    "mxfp8_e4m3": lp.MXFP8_E4M3,
    "mxfp4": as_format("MX(Float(exp=2, man=1))"),  # without the wait that refusing a NaN asks for
    "nvfp4": as_format("ScaledFloat(Float(2, 1), scale=FP8_E4M3, block=16, tensor_scale=True)"),
    "block8, rows": lp.BlockFloat(8, dim=0),
    "block8, whole tensor": lp.BlockFloat(8),
    "int8, whole tensor": lp.Int(8),
    "int8, columns": lp.Int(8, axis=1),
    "int8_affine": lp.Int(8, symmetric=False),
}


def milliseconds(action: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def ratio_to_copy(x: Tensor, out: Tensor, action: Callable[[], object]) -> tuple[float, float]:
    """Median milliseconds of ``action``, and of the copies that took turns with it."""
    for _ in range(3):
        action()
        out.copy_(x)
    pairs = [(milliseconds(action), milliseconds(lambda: out.copy_(x))) for _ in range(ROUNDS)]
    own, copies = zip(*pairs, strict=True)
    return statistics.median(own), statistics.median(copies)


def rounding_action(x: Tensor, out: Tensor, fmt: Format, rounding: str) -> Callable[[], object]:
    seed = torch.tensor(1, device=x.device)
    made = triton_backend.plan_for(x, fmt, rounding)
    if isinstance(made, str):
        raise ValueError(made)
    return lambda: triton_backend.follow(made, x, fmt, seed, 0, [], out)


def throughput(dtype: torch.dtype) -> list[dict[str, object]]:
    x = torch.randn(SHAPE, device="cuda").to(dtype)
    out = torch.empty_like(x)
    measured: list[dict[str, object]] = []
    for name, fmt in FORMATS.items():
        for rounding in ("nearest", "stochastic"):
            own, copy = ratio_to_copy(x, out, rounding_action(x, out, fmt, rounding))
            row: dict[str, object] = {
                "format": name,
                "rounding": rounding,
                "dtype": str(dtype),
                "ms": own,
                "copy_ms": copy,
            }
            measured.append(row | {"copies": round(own / copy, 3), "bits_equal": bits_equal(fmt, rounding, dtype)})
    return measured


def bits_equal(fmt: Format, rounding: str, dtype: torch.dtype) -> bool:
    """Whether a smaller tensor gets the CPU's bits."""
    x = (torch.randn(1024, 1000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    seed = torch.tensor(1)
    expected, found = torch.empty_like(x), torch.empty_like(x, device="cuda")
    reference.quantize(x, fmt, rounding, seed, 0, [], expected)
    triton_backend.quantize(x.cuda(), fmt, rounding, seed.cuda(), 0, [], found)
    pattern = torch.int32 if dtype == torch.float32 else torch.int16
    return torch.equal(found.cpu().view(pattern), expected.view(pattern))


def call_overhead(calls: int = 2000) -> dict[str, float]:
    """Microseconds of a call that launches on a small tensor."""
    x = torch.randn(64, 64, device="cuda")
    out = torch.empty_like(x)
    found = {}
    for name in ("bf16", "mxfp8_e4m3", "block8, rows"):
        action = rounding_action(x, out, FORMATS[name], "stochastic")
        action()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            action()
        found[name] = round((time.perf_counter() - begin) / calls * 1e6, 2)
        torch.cuda.synchronize()
    return found


def main(out: Path) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/quantizers_gpu.py needs a CUDA GPU")
    results = {
        "gpu": torch.cuda.get_device_name(),
        "versions": versions(),
        "shape": SHAPE,
        "throughput": [row for dtype in (torch.float32, torch.bfloat16) for row in throughput(dtype)],
        "call_us": call_overhead(),
    }
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

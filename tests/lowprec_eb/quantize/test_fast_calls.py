"""Calls of the fast back end: where results go, what it refuses, threads and processes."""

import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import FORMATS, REFUSES_NAN, normal, same_bits

import lowprec_eb as lp
from lowprec_eb.quantize import fast
from lowprec_eb.quantize.fast import call as fast_call
from lowprec_eb.quantize.fast import objects, threads

KINDS = ["fp8_e4m3", "fixed8", "block8", "int8_affine", "mxfp4", "nvfp4", "int of 4"]  # where one of a kind is enough
each_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=[(1, True), (2, True), (2, False)], ids=lambda how: f"{how[0]}{'' if how[1] else ' of Python'}")
def several_threads(request, monkeypatch):
    """That many threads, of OpenMP or of Python, from the first element on."""
    count, openmp = request.param
    monkeypatch.setattr(threads, "PARALLEL_FROM", 1)
    if not openmp:
        monkeypatch.setattr(threads, "_PYTHON_THREADS_FROM", 1)
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(1)


# ---- where the result goes ---------------------------------------------------------------------------------------

TARGETS = {
    "elsewhere": lambda: (normal(40, 60), torch.empty(40, 60)),
    "in place": lambda: (normal(40, 60),) * 2,
    "in place, transposed": lambda: (normal(60, 40).T,) * 2,
    "in place, strided": lambda: (normal(40, 120)[:, ::2],) * 2,
    "to a strided one": lambda: (normal(40, 60), torch.empty(40, 120)[:, ::2]),
    "to a transposed one": lambda: (normal(40, 60), torch.empty(60, 40).T),
    "from expanded": lambda: (normal(1, 60).expand(40, 60), torch.empty(40, 60)),
    "onto its own transpose": lambda: (lambda x: (x, x.T))(normal(50, 50)),
    "one element further": lambda: (lambda x: (x[:-1], x[1:]))(normal(2401)),
    "one element back": lambda: (lambda x: (x[1:], x[:-1]))(normal(2401)),
    "one row further, of numpy's": lambda: (lambda x: (torch.from_numpy(x[:-1]), torch.from_numpy(x[1:])))(
        normal(41, 60).numpy()
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@each_kind
def test_out_may_overlap_and_lie_in_any_way(name, target, several_threads):
    x, out = TARGETS[target]()
    expected = lp.quantize(x.clone(), FORMATS[name], "stochastic", seed=3, backend="reference")
    strides, version = out.stride(), out._version
    assert lp.quantize(x, FORMATS[name], "stochastic", seed=3, backend="fast", out=out) is out
    assert torch.equal(out, expected) and out.stride() == strides
    assert out._version > version


def test_a_tensor_that_backward_needs_is_not_overwritten_in_silence():
    x = normal(5).requires_grad_()
    with torch.enable_grad():
        factor = normal(5)
        y = (x * factor).sum()
    lp.quantize_(factor, "int8", backend="fast")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_inference_tensors():
    with torch.inference_mode():
        x = normal(5)
        assert torch.equal(lp.quantize(x, "int8", backend="fast"), lp.quantize(x, "int8", backend="reference"))
        assert torch.equal(lp.quantize_(x, "int8", backend="fast"), lp.quantize(normal(5), "int8"))


@pytest.mark.parametrize("name", REFUSES_NAN)
@pytest.mark.parametrize("at", [0, 1500, 2399])
def test_a_refused_nan_leaves_the_tensor_whole(name, at, several_threads):
    x = normal(40, 60)
    x.view(-1)[at] = math.nan
    before = x.clone()
    for backend in ("fast", "auto"):
        with pytest.raises(ValueError, match="1 of 2400 values are NaN"):
            lp.quantize_(x, FORMATS[name], backend=backend)
    assert same_bits(x, before)


def test_a_refused_nan_leaves_a_tensor_whole_that_the_result_overlaps():
    out = normal(8, 8)
    out[7, 7] = math.nan
    before = out.clone()
    with pytest.raises(ValueError, match="1 of 64 values are NaN"):
        lp.quantize(out.T, "fp4_e2m1", backend="fast", out=out)
    assert same_bits(out, before)


# ---- what it refuses ---------------------------------------------------------------------------------------------

REFUSED = {
    "float64": (normal(4, dtype=torch.float64), lp.Int(8), "not torch.float64"),
    "slices apart": (normal(2, 3, 4), lp.Int(8, axis=(0, 2)), "do not lie side by side"),
    "tiny steps": (normal(4), lp.MX(lp.FixedPoint(8, 23, symmetric=True)), "leave float32's range"),
    "ties of scales": (
        normal(4),
        lp.ScaledFloat(lp.FP8_E4M3, scale=lp.Float(4, 3, ties="away"), block=2),
        "its scales round ties away from zero",
    ),
}


@pytest.mark.parametrize("x, fmt, reason", REFUSED.values(), ids=REFUSED)
def test_it_says_what_it_refuses_and_auto_takes_the_reference(x, fmt, reason):
    with pytest.raises(ValueError, match=f"backend='fast' cannot round this: .*{reason}.*'reference' or 'auto'"):
        lp.quantize(x, fmt, backend="fast")
    name, why = lp.backend_for(x, fmt)
    assert name == "reference" and reason in why
    assert torch.equal(lp.quantize(x, fmt), lp.quantize(x, fmt, backend="reference"))


def test_auto_takes_it_where_it_can(monkeypatch):
    calls = []
    monkeypatch.setattr(fast, "follow", lambda *arguments: calls.append(arguments))
    lp.quantize(normal(4), "int8")
    assert len(calls) == 1
    assert lp.backend_for(normal(4), "int8")[0] == "fast"


def test_other_devices_and_missing_packages_are_named(monkeypatch):
    assert lp.backend_for(torch.empty(4, device="meta"), "int8") == (
        "reference",
        "not fast: it runs on the CPU, the tensor is on meta",
    )
    monkeypatch.setattr(fast, "_missing_packages", lambda: "llvmlite not installed")
    assert lp.backend_for(normal(4), "int8") == ("reference", "not fast: llvmlite not installed")
    with pytest.raises(ValueError, match="llvmlite not installed"):
        lp.quantize(normal(4), "int8", backend="fast")


@pytest.mark.parametrize("backend", ["fast", "reference", "auto"])
def test_a_missing_dimension_is_the_same_error_everywhere(backend):
    with pytest.raises(ValueError, match="blocks along dimension 2 need a tensor with more than 2 dimensions"):
        lp.quantize(normal(4, 4), lp.Int(8, axis=2), backend=backend)


# ---- threads and processes ---------------------------------------------------------------------------------------


def test_several_python_threads_at_once(several_threads):
    jobs = [(name, seed) for name in KINDS for seed in range(6)]

    def work(job):
        name, seed = job
        return lp.quantize(normal(37, 60), FORMATS[name], "stochastic", seed=seed, backend="fast")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, jobs))
    for (name, seed), result in zip(jobs, found, strict=True):
        expected = lp.quantize(normal(37, 60), FORMATS[name], "stochastic", seed=seed, backend="reference")
        assert torch.equal(result, expected)


def test_a_kernel_runs_without_the_interpreters_lock():
    fmt, x = lp.FixedPoint(8, 4), normal(2**18)
    call = fast_call.Call(fast.plan_for(x, fmt, "nearest"), x, fmt, 0, 0, torch.empty_like(x))
    kernel, address = objects.kernel(call.plan.compiled), fast_call._address(call.buffer)
    gate, passed = threading.Lock(), []
    gate.acquire()
    other = threading.Thread(target=lambda: passed.append(gate.acquire()))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(
        100
    )  # a thread runs only when another gives up the lock by itself, which Python code does not
    try:
        other.start()
        gate.release()
        for _ in range(5000):
            kernel(address, 0, x.numel())
            if passed:
                break
        assert passed
    finally:
        sys.setswitchinterval(interval)
        other.join()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's threads take part")
def test_torchs_own_threads_run_the_kernels(monkeypatch):
    assert threads._openmp() is not None
    monkeypatch.setattr(threads, "_pool", lambda: pytest.fail("Python's threads were asked"))
    torch.set_num_threads(2)
    x = normal(2**18)
    assert torch.equal(lp.quantize(x, "int8", backend="fast"), lp.quantize(x, "int8", backend="reference"))
    torch.set_num_threads(1)


def test_parts_are_large_and_more_than_threads(monkeypatch):
    torch.set_num_threads(2)
    assert [threads.parts_of(n) for n in (0, 2**17 - 1, 2**17, 2**18, 2**19, 2**24)] == [1, 1, 2, 4, 8, 8]
    monkeypatch.setattr(threads, "_openmp", lambda: None)
    assert [threads.parts_of(n) for n in (2**20 - 1, 2**20, 2**24)] == [1, 2, 2]
    torch.set_num_threads(1)


def test_the_openmp_library_is_torchs():
    lines = """7f00-7f01 r-xp 0000 08:01 42   /opt/some place/torch/lib/libgomp.so.1
7f00-7f01 r-xp 0000 08:01 42   /opt/torch.libs/libgomp-a34b3233.so.1.0.0
7f00-7f01 r-xp 0000 08:01 42   /usr/lib/libiomp5.so
7f00-7f01 r-xp 0000 08:01 42   /usr/lib/libgompression.so
7f00-7f01 r-xp 0000 00:00 0 
7f00-7f01 rw-p 0000 00:00 0    [heap]
"""
    found = [
        "/opt/some place/torch/lib/libgomp.so.1",
        "/opt/torch.libs/libgomp-a34b3233.so.1.0.0",
        "/usr/lib/libiomp5.so",
    ]
    assert threads._MAPPED.findall(lines) == found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Python's threads take part")
def test_the_library_of_a_package_with_torch_in_its_name_is_not_torchs(monkeypatch):
    own = threads._MAPPED.findall(Path("/proc/self/maps").read_text())
    other = f"{Path(torch.__file__).parent}vision.libs/libgomp-1.so.1"
    monkeypatch.setattr(threads, "_MAPPED", SimpleNamespace(findall=lambda maps: [*own, other]))
    assert threads._openmp.__wrapped__() is not None


FORK = """
import os, signal, sys
import torch
import lowprec_eb as lp
from lowprec_eb.quantize.fast import threads

threads.PARALLEL_FROM = 1
torch.set_num_threads(2)
x = torch.arange(2000) / 64
expected = lp.quantize(x, "int8", backend="fast")
child = os.fork()
if child == 0:
    signal.alarm(60)  # a child that waits for its parent's threads must not hang the tests
    os._exit(0 if torch.equal(lp.quantize(x, "int8", backend="fast"), expected) else 1)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own():
    assert subprocess.run([sys.executable, "-c", FORK], check=False).returncode == 0

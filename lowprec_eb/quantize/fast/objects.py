"""Machine code of the kernels: compiled once, kept in a cache and loaded, all by llvmlite.

Kernels are plain C functions without references to anything outside, stored as object code, one file a kernel, under a
name that hashes the kernel sources, the versions and the processor. A file that is missing, of another version or
damaged is made anew; a cache that cannot be written costs a compilation per process, and a warning says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import tempfile
import threading
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lowprec_eb.cache import cache_folder

Kernel = Any  # a C function (address of the job, first, last) that runs without the interpreter's lock
_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 3)
_SOURCES = ("slots.py", "lanes.py", "arithmetic.py", "loops.py", "kernels.py", "objects.py")
_DIGEST_BYTES = 32
_lock = threading.RLock()
_loaded: dict[str, Kernel] = {}


def kernel(name: str) -> Kernel:
    """The kernel of this name of :mod:`lowprec_eb.quantize.fast.kernels`, loaded or compiled at its first use."""
    found = _loaded.get(name)
    if found is not None:
        return found
    with _lock:
        if name not in _loaded:
            _loaded[name] = _link(name, _object_code(name))
        return _loaded[name]


def address_of(kernel: Kernel) -> int:
    return int(ctypes.cast(kernel, ctypes.c_void_p).value or 0)


def _object_code(name: str) -> bytes:
    try:
        path = cache_folder() / f"{name}-{_fingerprint()}.o"
    except RuntimeError as error:  # no home folder
        return _kept_nowhere(name, "the user's cache folder", str(error))
    cached = _read(path)
    if cached is not None:
        return cached
    code = _compile(name)
    try:
        _write(path, code)
    except OSError as error:
        return _kept_nowhere(name, str(path.parent), str(error.strerror), code)
    return code


def _kept_nowhere(name: str, place: str, reason: str, code: bytes | None = None) -> bytes:
    warnings.warn(
        f"compiled quantizer kernels cannot be kept in {place} ({reason}): every process will compile them anew; set "
        "LOWPREC_EB_CACHE to a folder that can be written",
        RuntimeWarning,
        stacklevel=4,
    )
    return _compile(name) if code is None else code


def _read(path: Path) -> bytes | None:
    """The object code of a cache file; None if it is missing or not what was written."""
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, code = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Whole or not at all: several processes may write the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


@lru_cache(maxsize=1)
def _fingerprint() -> str:
    """Of everything that the machine code depends on."""
    binding = _binding()
    folder = Path(__file__).parent
    parts = [(folder / source).read_bytes() for source in _SOURCES]
    machine = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), *binding.llvm_version_info)
    parts.append(repr((machine, version("llvmlite"))).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@lru_cache(maxsize=1)
def _binding() -> Any:
    binding = importlib.import_module("llvmlite.binding")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding


@lru_cache(maxsize=1)
def _target_machine() -> Any:
    binding = _binding()
    features = binding.get_host_cpu_features().flatten()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3, jit=True)


@lru_cache(maxsize=1)
def _engine() -> Any:
    binding = _binding()
    return binding.create_mcjit_compiler(binding.parse_assembly(""), _target_machine())


def _compile(name: str) -> bytes:
    """Object code that defines the kernel's function."""
    kernels = importlib.import_module("lowprec_eb.quantize.fast.kernels")
    binding, machine = _binding(), _target_machine()
    module = binding.parse_assembly(kernels.build(name, _symbol(name)))
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    # Kernels are written in vectors: looking for more of them takes longer than all else.
    tuning = binding.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = False
    builder = binding.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _symbol(name: str) -> str:
    return f"lowprec_eb_{name.replace('-', '_')}"


def _link(name: str, code: bytes) -> Kernel:
    binding, engine = _binding(), _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return _PROTOTYPE(engine.get_function_address(_symbol(name)))

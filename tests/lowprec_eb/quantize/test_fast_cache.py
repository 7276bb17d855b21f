"""The cache of compiled kernels. Most tests compile only the smallest kernel, and only once."""

import os
import subprocess
import sys
import warnings

import pytest

from lowprec_eb.cache import cache_folder
from lowprec_eb.quantize.fast import objects

NAME = "apply_rule"


@pytest.fixture(scope="module")
def object_code():
    """The smallest kernel, compiled for this module."""
    return objects._compile(NAME)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, and a process that has loaded nothing yet."""
    chosen = tmp_path / "parent" / "cache"
    monkeypatch.setenv("LOWPREC_EB_CACHE", str(chosen))
    monkeypatch.setattr(objects, "_loaded", {})
    return chosen


@pytest.fixture
def compilations(object_code, monkeypatch):
    """Names of the kernels compiled so far, which cost nothing here."""
    names = []
    monkeypatch.setattr(objects, "_compile", lambda name: names.append(name) or object_code)
    return names


def load_anew():
    """As the first use of a process."""
    objects._loaded.clear()
    return objects.kernel(NAME)


def only_file(folder):
    (path,) = folder.iterdir()  # no unfinished one beside it
    return path


def works(kernel):
    return kernel(0, 0, 0) == 0  # a job of no blocks, which succeeds


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_made_and_a_kernel_compiled_once(folder, compilations):
    assert works(load_anew()) and works(load_anew())
    assert compilations == [NAME]
    assert only_file(folder).name.startswith(f"{NAME}-")


def test_a_loaded_kernel_is_not_loaded_again(folder, compilations):
    assert load_anew() is objects.kernel(NAME)


@pytest.mark.parametrize(
    "damage",
    [lambda code: b"", lambda code: code[:-1], lambda code: code[:7], lambda code: code[:-1] + bytes([code[-1] ^ 1])],
    ids=["empty", "truncated", "almost nothing", "one bit flipped"],
)
def test_a_damaged_file_is_made_anew(damage, folder, compilations):
    load_anew()
    path = only_file(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert works(load_anew())
    assert compilations == [NAME, NAME] and only_file(folder).read_bytes() == whole


def test_a_folder_in_the_files_place_is_no_crash(folder, compilations):
    load_anew()
    path = only_file(folder)
    path.unlink()
    path.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        assert works(load_anew())


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_folder_that_cannot_be_written_warns_and_works(below, folder, compilations, monkeypatch):
    folder.parent.mkdir()
    folder.write_text("not a folder, which stops even root")
    monkeypatch.setenv("LOWPREC_EB_CACHE", str(folder / below))
    with pytest.warns(RuntimeWarning, match="cannot be kept in .*every process will compile.*LOWPREC_EB_CACHE"):
        assert works(load_anew())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert works(objects.kernel(NAME))  # said once


def test_a_user_without_home_is_told_and_served(folder, compilations, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("LOWPREC_EB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(objects.Path, "home", no_home)
    with pytest.warns(RuntimeWarning, match="LOWPREC_EB_CACHE"):
        assert works(load_anew())


def test_a_full_disk_leaves_no_half_file(folder, compilations, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects.Path, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert works(load_anew())
    assert list(folder.iterdir()) == []


# ---- what a file's name depends on -------------------------------------------------------------------------------


@pytest.fixture
def fingerprint():
    objects._fingerprint.cache_clear()
    yield objects._fingerprint.__wrapped__
    objects._fingerprint.cache_clear()


def test_other_sources_are_another_file(fingerprint, tmp_path, monkeypatch):
    before = fingerprint()
    folder = objects.Path(objects.__file__).parent
    for name in objects._SOURCES:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    monkeypatch.setattr(objects, "__file__", str(tmp_path / "objects.py"))
    assert fingerprint() == before
    for name in objects._SOURCES:
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"\n")
        assert fingerprint() != before
        path.write_bytes(whole)


def test_every_module_that_kernels_are_compiled_from_counts():
    script = "import sys, lowprec_eb.quantize.fast.kernels; print(*sys.modules)"
    modules = run(script).split()
    package = "lowprec_eb.quantize.fast."
    sources = {f"{name.removeprefix(package)}.py" for name in modules if name.startswith(package)}
    in_python = {"call.py", "order.py", "packed.py", "plan.py", "threads.py"}
    assert sources - in_python == set(objects._SOURCES)


@pytest.mark.parametrize("part", ["get_host_cpu_name", "get_host_cpu_features"])
def test_another_processor_is_another_file(part, fingerprint, monkeypatch):
    class Features(dict):
        def flatten(self):
            return "+other"

    before = fingerprint()
    monkeypatch.setattr(objects._binding(), part, lambda: "other" if part.endswith("name") else Features())
    assert fingerprint() != before


def test_another_llvm_is_another_file(fingerprint, monkeypatch):
    before = fingerprint()
    monkeypatch.setattr(objects._binding(), "llvm_version_info", (1, 2, 3))
    assert fingerprint() != before


# ---- where it is -------------------------------------------------------------------------------------------------


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("LOWPREC_EB_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("LOWPREC_EB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "lowprec-eb"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "lowprec-eb"


# ---- other processes ---------------------------------------------------------------------------------------------


def start(script, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", script],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script, **environment):
    process = start(script, **environment)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


USE = f"""
import sys
from lowprec_eb.quantize.fast import objects
assert objects.kernel({NAME!r})(0, 0, 0) == 0
print("lowprec_eb.quantize.fast.kernels" in sys.modules)
"""


def test_two_processes_at_once_and_a_third_that_compiles_nothing(folder):
    processes = [start(USE), start(USE)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    only_file(folder)
    assert run(USE).strip() == "False"  # what writes the kernels is not even imported


def test_importing_the_package_loads_no_compiler():
    modules = run("import sys, lowprec_eb; print(*sys.modules)").split()
    assert "llvmlite" not in modules

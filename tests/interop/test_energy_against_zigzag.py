"""Memory energy against ZigZag run here; `tests/test_energy_checks.py` compares with its saved figures on more layers.

ZigZag counts memory only: its MAC energy does not know of bits.
"""

import logging
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import energy_models as em

api = pytest.importorskip("zigzag.api")

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MAPPINGS = {"zigzag_eyeriss_like": "default", "zigzag_tpu_like": "tpu_like"}
CASES = (0, 2, 5, 7)  # two layers on both machines


@pytest.fixture(scope="module")
def checks():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import energy_checks

        yield energy_checks
    finally:
        sys.path.remove(str(BENCHMARKS))


def workload(layer, bits):
    pad = layer.kernel // 2
    return {
        "id": 0,
        "name": layer.name,
        "operator_type": "Conv",
        "equation": "O[b][k][oy][ox]+=W[k][c][fy][fx]*I[b][c][iy][ix]",
        "dimension_relations": ["ix=1*ox+1*fx", "iy=1*oy+1*fy"],
        "loop_dims": ["B", "K", "C", "OY", "OX", "FY", "FX"],
        "loop_sizes": [1, layer.outputs, layer.inputs, layer.side, layer.side, layer.kernel, layer.kernel],
        "operand_precision": {"W": bits, "I": bits, "O": 2 * bits, "O_final": bits},
        "operand_source": {"I": 0, "W": 0},
        "pr_loop_dims": ["IX", "IY"],
        "pr_loop_sizes": [layer.input_side, layer.input_side],
        "padding": [[pad, pad], [pad, pad]],
    }


def run_zigzag(case, folder):
    """Memory energy of a layer as ZigZag finds it, and by operand and level, in pJ."""
    path = folder / "layer.yaml"
    YAML(typ="safe").dump([workload(case.layer, 8)], path)
    inputs, machine = files("zigzag") / "inputs", case.machine.removeprefix("zigzag_")
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        _, _, found = api.get_hardware_performance_zigzag(
            str(path),
            str(inputs / "hardware" / f"{machine}.yaml"),
            str(inputs / "mapping" / f"{MAPPINGS[case.machine]}.yaml"),
            opt="energy",
            lpf_limit=4,
            loma_show_progress_bar=False,
            dump_folder=str(folder),
        )
    finally:
        logging.disable(level)
    result = found[0][0]
    return result.mem_energy, {str(name): levels for name, levels in result.mem_energy_breakdown.items()}


@pytest.mark.parametrize("place", CASES)
def test_dram_to_the_digit_and_memory_within_the_range(checks, place, tmp_path):
    case = checks.ZIGZAG[place]
    memory_pj, levels = run_zigzag(case, tmp_path)
    profile = em.load_profile(BENCHMARKS / "profiles" / f"{case.machine}.yaml")
    counts = checks.convolution(case.layer, 1, 8, 16)
    (gemm,) = counts.gemms
    read, write = (profile.memory[0].energy.per_bit().at(end) for end in ("low", "high"))
    # ZigZag rounds up to whole accesses of whole tiles.
    assert levels["I"][-1] == pytest.approx(gemm.a.stored_bits * read, rel=3e-4)
    assert levels["W"][-1] == pytest.approx(gemm.b.stored_bits * read, rel=3e-4)
    assert levels["O"][-1] == pytest.approx(gemm.result_elements * gemm.result_bits * write, rel=3e-4)
    memory = em.estimate(counts, profile).memory_j * 1e12
    assert memory.low < memory_pj < memory.high
    assert 0.7 < memory.nominal / memory_pj < 1.4
    assert memory_pj == pytest.approx(case.memory_uj * 1e6, rel=0.1)  # the saved figure, from a longer search

"""What must hold on a GPU; skipped without one. `benchmarks/on_gpu.sh` runs these."""

import dataclasses

import pytest
import torch

import lowprec_eb as lp
from energy_models import measure
from lowprec_eb.compare import run_arm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(
    "fmt", [lp.BlockFloat(8, 0), lp.BlockFloat(8, -1), lp.FixedPoint(8, 4), lp.BF16, lp.Float(4, 3)]
)
def test_quantizers_give_the_bits_of_the_cpu(fmt, rounding):
    x = torch.randn(257, 33, 3, generator=torch.Generator().manual_seed(0)) * 3
    on_gpu = lp.quantize(x.cuda(), fmt, rounding, seed=5)
    assert torch.equal(on_gpu.cpu(), lp.quantize(x, fmt, rounding, seed=5))


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


def test_an_early_bird_runs_and_is_measured_where_nvml_is(tiny, tmp_path):
    config = dataclasses.replace(tiny, device="cuda")
    arm = next(arm for arm in config.pipelines if arm.name == "LL")
    result = run_arm(config, tmp_path, 0, arm, Silent())
    with measure("cuda") as probe:
        torch.randn(2000, 2000, device="cuda").square().sum().item()
    searched = [row for rows in result.rows.values() for row in rows if row.key.phase == "search"]
    assert all((row.measured_j is not None) == (probe.energy_j is not None) for row in searched)
    assert 0 < result.outcome.test_accuracy <= 1

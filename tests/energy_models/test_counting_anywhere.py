"""A count is the same wherever it is called from, and leaves torch as it was."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from energy_models.counter import count
from energy_models.tracing import is_counting


def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


X = torch.ones(2, 3, 6, 6)


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        torch.autograd.detect_anomaly,
        lambda: FlopCounterMode(display=False),
        lambda: FakeTensorMode(allow_non_fake_inputs=True),
        lambda: torch.device("meta"),
    ],
)
def test_modes_of_torch_change_nothing(around: Callable[[], AbstractContextManager[object]]) -> None:
    alone, plain = model(), count(model(), X)
    with around():
        assert count(alone, X) == plain
        assert count(alone, torch.ones(2, 3, 6, 6)) == plain


def test_a_model_of_fake_tensors() -> None:
    with FakeTensorMode():
        fake, x = model(), torch.ones(2, 3, 6, 6)
    assert count(fake, x) == count(model(), X)


def test_a_real_run_in_inference_mode() -> None:
    plain = count(model(), X)
    alone = model()
    with torch.inference_mode():
        assert count(alone, X, values=True) == plain


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        count(nn.Linear(4, 4), torch.ones(2, 4))
        assert is_counting()
        return self.layer(x)


def test_a_count_within_a_count_is_its_own() -> None:
    assert count(Nested(), torch.ones(2, 4)).macs == count(nn.Linear(4, 4), torch.ones(2, 4)).macs


def test_threads_count_at_once() -> None:
    def settings() -> tuple[bool, ...]:
        backends = torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
        return *backends, torch.backends.mha.get_fastpath_enabled(), is_counting()

    started = Barrier(3)

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, x: Tensor) -> Tensor:
            started.wait(timeout=30)
            return self.inner(x)

        def __deepcopy__(self, memo: dict[int, object]) -> "Meeting":
            return self

    before = settings()
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda m: count(m, X, values=True), [Meeting() for _ in range(3)]))
    assert found[0] == found[1] == found[2] and found[0].total_macs == count(model(), X).total_macs
    assert settings() == before


def test_inside_a_compiled_program() -> None:
    alone = model()

    @torch.compile(backend="eager")
    def program(x: Tensor) -> Tensor:
        return x.sum() + count(alone, X).total_macs

    assert program(torch.zeros(2)).item() == count(alone, X).total_macs

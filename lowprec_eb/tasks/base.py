"""The contract between a task and the training loop."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Batch:
    """Some examples. For images: `inputs` (N, C, H, W) float32 and `targets` (N,) int64 class numbers."""

    inputs: Tensor
    targets: Tensor

    @property
    def samples(self) -> int:
        """Number of examples N."""
        return self.inputs.shape[0]


class Task(Protocol):
    """Data, loss and metric of one problem. Splits are named "train", "validation" and "test"."""

    @property
    def name(self) -> str:
        """Name of the data, for reports."""

    @property
    def classes(self) -> int:
        """Number of classes, the model's output width."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one example."""

    @property
    def samples(self) -> Mapping[str, int]:
        """Number of examples in each split."""

    @property
    def fingerprint(self) -> str:
        """A hash of the examples of all splits: results on other data are other results."""

    @property
    def batch_size(self) -> int:
        """Examples in a full batch, in training and in evaluation."""

    def batch_sizes(self, split: str) -> dict[int, int]:
        """Batch size -> number of such batches in one pass over `split`; costs are counted once per batch size."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The training batches of an epoch: a pure function of (seed, epoch), so a resumed run sees the same ones."""

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """Every example of `split` once, in a fixed order, not augmented."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch, a scalar tensor to call `backward` on."""

    def metric(self, model: nn.Module, split: str) -> float:
        """Quality in [0, 1] on `split`, every example weighing the same; training modes come back as they were."""

    def evaluate(self, model: nn.Module, split: str) -> tuple[float, float]:
        """(mean loss per example, metric) in one pass over `split`."""

"""Small networks with one property each that tools for channels stumble over."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SharedLayer(nn.Module):
    """One convolution is called twice, so what it reads and what it writes are one set of channels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(12)
        self.shared = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.bn2 = nn.BatchNorm2d(12)
        self.widen = nn.Conv2d(12, 20, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(20)
        self.fc = nn.Linear(20, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn0(self.stem(x)).relu()
        x = self.bn1(self.shared(x)).relu()
        x = self.bn2(self.shared(x)).relu()
        x = self.bn3(self.widen(x)).relu()
        return self.fc(x.mean((2, 3)))


class TwoHeads(nn.Module):
    """A trunk that two heads read; the outputs come in a dict."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.map_head = nn.Sequential(
            nn.Conv2d(16, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 2, 1)
        )
        self.class_head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.trunk(x)
        return {"map": self.map_head(features), "logits": self.class_head(features.mean((2, 3)))}


class Conv1dNet(nn.Module):
    """One-dimensional convolutions with BatchNorm1d, a flatten, and a linear layer with a BatchNorm1d of (N, C)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv1d(3, 8, 5, padding=2, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 16, 5, padding=2),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(4),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, L) -> logits (N, classes)."""
        return self.classifier(self.features(x))


class SigmoidNet(nn.Module):
    """A sigmoid behind a BatchNorm: a channel of zeros is read as 0.5."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, bias=False)  # no padding: at a border, too, a channel is read as a constant
        self.bn2 = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))

"""Published energies that `energy_checks.py` compares with.

ZigZag: zigzag-dse 3.9.1 (Mei et al. 2021) run with opt="energy" and lpf_limit=6, batch 1, 8 bits; 16 for partial sums.
Eyeriss: Chen et al., JSSC 52(1), 2017, table V, as nn_dataflow 2.1 has it in its tests (`test_eyeriss_isscc16`); the
    hierarchy's access counts are a run of nn_dataflow 2.1 (`test_eyeriss_isca16`: Chen et al., ISCA 2016, fig. 10).
Early bird: You et al., "Drawing Early-Bird Tickets", ICLR 2020, VGG16 on CIFAR-10.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """A convolution: channels in and out of all groups, side of the (square) output and input, kernel, groups."""

    name: str
    inputs: int
    outputs: int
    side: int
    kernel: int
    input_side: int
    groups: int = 1


@dataclass(frozen=True)
class ZigZag:
    """What ZigZag says of a layer on one machine, in uJ: [innermost, ..., DRAM] of each operand."""

    layer: Conv
    machine: str
    weights: tuple[float, ...]
    results: tuple[float, ...]
    inputs: tuple[float, ...]

    @property
    def memory_uj(self) -> float:
        return sum(self.weights) + sum(self.results) + sum(self.inputs)

    @property
    def dram_uj(self) -> float:
        return self.weights[-1] + self.results[-1] + self.inputs[-1]


_LAYERS = (
    Conv("16-16-32-3", 16, 16, 32, 3, 32),
    Conv("64-64-56-3", 64, 64, 56, 3, 56),
    Conv("128-256-14-3", 128, 256, 14, 3, 14),
    Conv("3-64-112-7, stride 2", 3, 64, 112, 7, 224),
    Conv("64-256-56-1", 64, 256, 56, 1, 56),
)
_E, _T = "zigzag_eyeriss_like", "zigzag_tpu_like"
ZIGZAG = (
    ZigZag(_LAYERS[0], _E, (2.363, 0.006, 0.288), (8.356, 0.026, 0.080, 2.048), (2.949, 0.352, 2.048)),
    ZigZag(_LAYERS[1], _E, (119.11, 2.652, 4.608), (442.09, 4.359, 0.964, 25.088), (58.000, 6.188, 25.088)),
    ZigZag(_LAYERS[2], _E, (64.08, 5.669, 36.87), (225.10, 3.773, 5.418, 6.272), (59.41, 0.237, 3.136)),
    ZigZag(_LAYERS[3], _E, (16.70, 0.026, 1.176), (410.28, 1.310, 3.857, 100.35), (184.71, 12.95, 18.82)),
    ZigZag(_LAYERS[4], _E, (16.09, 8.069, 2.048), (185.01, 1.284, 3.864, 100.35), (55.55, 0.975, 25.088)),
    ZigZag(_LAYERS[0], _T, (0.224, 0.202), (0.105, 0.051, 1.536), (0.264, 1.434)),
    ZigZag(_LAYERS[1], _T, (10.986, 3.226), (4.990, 0.623, 18.816), (6.170, 17.562)),
    ZigZag(_LAYERS[2], _T, (5.519, 25.805), (2.461, 0.156, 4.704), (2.974, 2.195)),
    ZigZag(_LAYERS[3], _T, (11.212, 0.823), (5.007, 2.492, 75.264), (16.21, 13.171)),
    ZigZag(_LAYERS[4], _T, (4.883, 1.434), (2.697, 2.492, 75.264), (2.907, 17.562)),
)


@dataclass(frozen=True)
class EyerissLayer:
    """A row of table V (batch 4): chip power, latency, MACs; and accesses of the hierarchy for batch 16, in 1e6."""

    layer: Conv
    power_mw: float
    latency_ms: float
    mega_macs: float
    dram_words: float
    buffer_words: float
    array_words: float
    rf_words: float

    @property
    def chip_mj(self) -> float:
        """Of the chip without DRAM."""
        return self.power_mw * self.latency_ms * 1e-3


EYERISS_BATCH, HIERARCHY_BATCH, EYERISS_BITS = 4, 16, 16
EYERISS = (
    EyerissLayer(Conv("CONV1", 3, 96, 55, 11, 227), 332, 16.5, 421.66, 12.281, 12.281, 96.687, 6746.6),
    EyerissLayer(Conv("CONV2", 96, 256, 27, 5, 27, 2), 288, 39.2, 895.79, 11.348, 11.348, 107.00, 14333),
    EyerissLayer(Conv("CONV3", 256, 384, 13, 3, 13), 266, 21.8, 598.1, 10.107, 10.107, 63.498, 9569.3),
    EyerissLayer(Conv("CONV4", 384, 384, 13, 3, 13, 2), 235, 16.0, 448.6, 7.840, 7.840, 48.402, 7177.0),
    EyerissLayer(Conv("CONV5", 384, 256, 13, 3, 13, 2), 236, 10.0, 299.0, 5.227, 5.227, 32.268, 4784.7),
)
EYERISS_DRAM_MB = 15.4  # of all layers, batch 4, feature maps compressed: JSSC 2017, section VI-A
EYERISS_DRAM_UNCOMPRESSED_MB = 23.4  # the chip's configuration in nn_dataflow, which compresses nothing
RELATIVE_COSTS = {"dram": 200, "buffer": 6, "array": 2, "rf": 1}  # of a 16-bit access, in MACs: ISCA 2016, table IV

# ---- the early-bird paper ----------------------------------------------------------------------------------------

PRUNED = (30, 50, 70)  # per cent of the channels
FLOPS_UNIT = 0.05e15
EPOCHS, IMAGES, BATCH = 160, 50_000, 256
# Row -> (kJ, training FLOPs in units) at each of `PRUNED`.
EARLY_BIRD: dict[str, tuple[tuple[float, float], ...]] = {
    "LT (one shot)": ((746.2, 605), (746.2, 605), (746.2, 605)),
    "SNIP": ((373.1, 302), (373.1, 302), (373.1, 302)),
    "NS": ((617.1, 547), (590.7, 514), (553.8, 475)),
    "ThiNet": ((298.0, 451), (383.9, 379), (380.1, 331)),
    "EB re-init": ((290.4, 288), (237.3, 240), (200.5, 189)),
    "EB FF": ((256.4, 253), (213.4, 215), (184.2, 197)),
    "EB LF": ((250.1, 261), (199.4, 214), (170.3, 164)),
    "EB LL": ((56.1, 261), (43.1, 214), (36.5, 164)),
}

"""What operations cost in energy: counts, hardware profiles, sensors and the ledger. Never imports lowprec_eb."""

from energy_models.calibration import Calibration, EnergyWindow, calibrate
from energy_models.count_store import CountStore, reprice
from energy_models.count_tree import CountNode
from energy_models.counter import count
from energy_models.counts import (
    ElementOps,
    Gemm,
    OpCounts,
    Operand,
    PrecisionLike,
    Zeros,
    element_ops,
)
from energy_models.difference import Difference, difference
from energy_models.energy import ModelledEnergy, Range
from energy_models.estimate import estimate, modelled_time_s, static_energy
from energy_models.footprint import Footprint
from energy_models.ledger import Ledger, LedgerDiff, LedgerKey, LedgerRow, Totals, diff, merge, settled, totals
from energy_models.loop_ledger import LedgerCallback
from energy_models.meters import (
    EnergyCallback,
    MeasuredEnergy,
    Nvml,
    Rapl,
    Reading,
    Replay,
    StepWindow,
    measure,
    measure_idle,
    record,
)
from energy_models.number_formats import FP32, FormatSpec, NumberFormat
from energy_models.optimizer_counter import count_optimizer, optimizer_state
from energy_models.profile_files import load_profile
from energy_models.profiles import HardwareProfile
from energy_models.sparsity import Sparsity, SparsityRow, sparsity
from energy_models.tracing.call import Call, Product

__all__ = [
    "FP32",
    "Calibration",
    "Call",
    "CountNode",
    "CountStore",
    "Difference",
    "ElementOps",
    "EnergyCallback",
    "EnergyWindow",
    "Footprint",
    "FormatSpec",
    "Gemm",
    "HardwareProfile",
    "Ledger",
    "LedgerCallback",
    "LedgerDiff",
    "LedgerKey",
    "LedgerRow",
    "MeasuredEnergy",
    "ModelledEnergy",
    "NumberFormat",
    "Nvml",
    "OpCounts",
    "Operand",
    "PrecisionLike",
    "Product",
    "Range",
    "Rapl",
    "Reading",
    "Replay",
    "Sparsity",
    "SparsityRow",
    "StepWindow",
    "Totals",
    "Zeros",
    "calibrate",
    "count",
    "count_optimizer",
    "diff",
    "difference",
    "element_ops",
    "estimate",
    "load_profile",
    "measure",
    "measure_idle",
    "merge",
    "modelled_time_s",
    "optimizer_state",
    "record",
    "reprice",
    "settled",
    "sparsity",
    "static_energy",
    "totals",
]

"""Counting models that other libraries define: nothing is left uncounted, and no values are needed to count right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from model_cases import CASES, build, torchvision
from torch import Tensor, nn

from energy_models.counter import count
from energy_models.counts import OpCounts

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

VISION = ("alexnet", "googlenet", "mobilenet_v2", "swin_t", "maxvit_t", "fcn_resnet50", "deeplabv3_resnet50", "r3d_18")
TIMM = (
    *("coat_tiny", "convnextv2_atto", "dm_nfnet_f0", "edgenext_xx_small", "eva02_tiny_patch14_224", "fastvit_t8"),
    *("hrnet_w18_small", "levit_128s", "mixer_s32_224", "mobilenetv4_conv_small", "resnest14d", "swinv2_cr_tiny_224"),
)


def parts(counts: OpCounts) -> tuple[Counter[Any], Counter[Any], Counter[Any]]:
    """GEMMs, arithmetic and traffic of the rest."""
    gemms = Counter((g.layer, g.gemm, g.batch, g.m, g.n, g.k, g.a.name, g.b.name) for g in counts.gemms)
    arithmetic: Counter[Any] = Counter()
    traffic: Counter[Any] = Counter()
    for row in counts.element_ops:
        arithmetic[row.kind, row.layer, row.part] += row.operations
        traffic[row.kind, row.layer, row.part] += row.traffic_bits
    return gemms, arithmetic, traffic


def check_both(model: nn.Module, inputs: Any, training: bool) -> None:
    without, real = (count(model, inputs, training=training, values=values) for values in (False, True))
    assert without.uncounted == ()
    assert without.macs == real.macs and parts(without) == parts(real)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_real_run_counts_the_same(name: str, training: bool) -> None:
    model, batch = build(name)
    check_both(model, batch, training)


@pytest.mark.parametrize("name", VISION)
def test_torchvision(name: str) -> None:
    vision = torchvision()
    with torch.device("meta"):
        segments = {"weights_backbone": None} if name.startswith(("fcn", "deeplab")) else {}
        model = vision.models.get_model(name, **segments)
        x = torch.empty(2, 3, 8, 112, 112) if name == "r3d_18" else torch.empty(2, 3, 224, 224)
    counts = count(model, x)
    has_attention = any(row.kind == "softmax" for row in counts.element_ops)  # whose products have no weight
    assert counts.uncounted == () and 0 < counts.macs["grad_weight"] <= counts.macs["output"]
    assert (counts.macs["grad_weight"] < counts.macs["output"]) == has_attention


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    torchvision()
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name)
        x = torch.empty(2, *model.pretrained_cfg["input_size"])
    counts = count(model, x)
    assert counts.uncounted == () and 0 < counts.macs["grad_weight"] <= counts.macs["output"]
    assert count(model, x, training=False).uncounted == ()


def _small(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        **more,
    }


def _encoder_decoder(**more: Any) -> dict[str, Any]:
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _LAYERS.items()}
    return {"vocab_size": 99, "d_model": 32, **sizes, **more}


_LAYERS = {"layers": 2, "attention_heads": 4, "ffn_dim": 37}
_SPEECH = {"max_source_positions": 30, "num_mel_bins": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WAVES = {"conv_dim": (16, 16), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
HUGGING_FACE: dict[str, tuple[str, dict[str, Any]]] = {
    "MistralForCausalLM": ("MistralConfig", _small(num_key_value_heads=2, sliding_window=4)),
    "Qwen3ForCausalLM": ("Qwen3Config", _small(num_key_value_heads=2, head_dim=8)),
    "FalconForCausalLM": ("FalconConfig", _small()),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 99, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "MambaForCausalLM": ("MambaConfig", {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "DebertaV2ForMaskedLM": (
        "DebertaV2Config",
        _small(relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8),
    ),
    "LongformerForMaskedLM": ("LongformerConfig", _small(attention_window=4)),
    "FNetForMaskedLM": ("FNetConfig", _small()),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4},
    ),
    "BartForConditionalGeneration": ("BartConfig", _encoder_decoder()),
    "WhisperForConditionalGeneration": ("WhisperConfig", _encoder_decoder(**_SPEECH)),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", {**_small(vocab_size=32, mask_time_prob=0.0), **_WAVES}),
}


def _labelled(name: str) -> dict[str, Tensor]:
    tokens = torch.randint(2, 30, (2, 12))
    if name.startswith("Whisper"):
        return {"input_features": torch.zeros(2, 16, 60), "labels": tokens}
    if name.startswith("Wav2Vec2"):
        return {"input_values": torch.zeros(2, 1600), "labels": tokens}
    return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_hugging_face(name: str) -> None:
    torchvision()  # which transformers imports
    transformers = pytest.importorskip("transformers")
    config, sizes = HUGGING_FACE[name]
    if name.startswith(("T5", "Whisper")):
        sizes = {**sizes, "decoder_start_token_id": 0}
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    torch.manual_seed(0)
    check_both(model, _labelled(name), True)


def _graph_layers(nn_: Any) -> dict[str, Callable[[], nn.Module]]:
    return {
        "SAGEConv": lambda: nn_.SAGEConv(16, 8),
        "GATConv": lambda: nn_.GATConv(16, 8, heads=2),
        "GINConv": lambda: nn_.GINConv(nn.Sequential(nn.Linear(16, 8), nn.ReLU())),
        "TransformerConv": lambda: nn_.TransformerConv(16, 8, heads=2),
        "EdgeConv": lambda: nn_.EdgeConv(nn.Linear(32, 8)),
    }


@pytest.mark.parametrize("name", ["SAGEConv", "GATConv", "GINConv", "TransformerConv", "EdgeConv"])
@pytest.mark.parametrize("training", [True, False])
def test_torch_geometric(name: str, training: bool) -> None:
    layers = _graph_layers(pytest.importorskip("torch_geometric.nn"))
    torch.manual_seed(0)
    check_both(layers[name](), (torch.zeros(20, 16), torch.randint(0, 20, (2, 60))), training)


def test_a_detector_needs_values_and_says_so() -> None:
    model = torchvision().models.detection.retinanet_resnet50_fpn(weights_backbone=None)
    with pytest.raises(ValueError, match="values=True"):
        count(model, ([torch.zeros(3, 64, 64)],), training=False)

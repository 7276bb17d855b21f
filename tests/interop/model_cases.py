"""Models of other libraries, small, built from their configurations: what the tests of lowering them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowprec_eb as lp

CLASSES = 5


@dataclass(frozen=True)
class Case:
    """A model, a batch of keyword arguments, and how low precision goes into it.

    exempt: override patterns of modules whose products stay in full precision.
    unlowered: who multiplies in full precision all the same, when functional calls are left alone.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], dict[str, Any]]
    functional: bool = False
    exempt: tuple[str, ...] = ()
    unlowered: tuple[str, ...] = ()


def build(name: str, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a case, in training mode, and its batch."""
    torch.manual_seed(seed)
    case = CASES[name]
    model = case.make().train()
    return model, case.batch()


def precision_of(name: str, base: str | lp.Precision) -> lp.Precision:
    """``base``, with what the case exempts in full precision."""
    found = lp.precision(base)
    exempt = [(pattern, lp.precision("fp32")) for pattern in CASES[name].exempt]
    return lp.precision(found, overrides=(*exempt, *found.overrides))


def lower(name: str, model: nn.Module, base: str | lp.Precision, **options: Any) -> lp.LoweringReport:
    return lp.lower(model, precision_of(name, base), functional=CASES[name].functional, **options)


def outputs(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """The logits (..., classes)."""
    found = model(**batch)
    return found if isinstance(found, Tensor) else found.logits


def loss_of(logits: Tensor) -> Tensor:
    rows = logits.flatten(0, -2)
    return F.cross_entropy(rows, torch.arange(len(rows)) % CLASSES)


def gradients(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The output, and the gradient of every parameter that has one."""
    model.zero_grad()
    logits = outputs(model, batch)
    loss_of(logits).backward()
    return {"output": logits.detach()} | {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


# ---- Hugging Face -------------------------------------------------------------------------------------------------

_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def _transformers() -> Any:
    torchvision()  # which transformers imports
    return pytest.importorskip("transformers")


def _bert() -> nn.Module:
    transformers = _transformers()
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, num_labels=CLASSES, **_SIZES)
    return transformers.BertForSequenceClassification(_without_dropout(config))


def _gpt2() -> nn.Module:
    transformers = _transformers()
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, **_ENDS)
    return transformers.GPT2LMHeadModel(_without_dropout(config))


def _llama() -> nn.Module:
    transformers = _transformers()
    config = transformers.LlamaConfig(
        vocab_size=50, max_position_embeddings=16, num_key_value_heads=1, **_SIZES, **_ENDS
    )
    return transformers.LlamaForCausalLM(config)


def _without_dropout(config: Any) -> Any:
    """So that a lowered model can be compared with the plain one while it trains."""
    for name in vars(config):
        if name.endswith(("_dropout", "_dropout_prob", "_pdrop")):
            setattr(config, name, 0.0)
    return config


def _tokens() -> dict[str, Any]:
    ids = torch.randint(50, (2, 8))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def _sentences() -> dict[str, Any]:
    return {key: value for key, value in _tokens().items() if key != "use_cache"}


# ---- torchvision, timm --------------------------------------------------------------------------------------------


@cache
def torchvision() -> Any:
    """The library. Its usual wheel, built for CUDA, fails to import beside a CPU torch for want of two schemas."""
    if find_spec("torchvision") and torch.version.cuda is None and "+cpu" not in version("torchvision"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    return pytest.importorskip("torchvision")


_kept: list[Any] = []  # a library's definitions go with it


def _resnet18() -> nn.Module:
    return torchvision().models.resnet18(num_classes=CLASSES)


def _mobilenet_v3() -> nn.Module:
    return torchvision().models.mobilenet_v3_small(num_classes=CLASSES, dropout=0.0)


def _vit() -> nn.Module:
    """ViT-B/16 with fewer and narrower layers."""
    model = torchvision().models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight, std=0.1)  # zeros, as it comes: no gradient would reach the layers
    return model


def _convnext_atto() -> nn.Module:
    torchvision()
    timm = pytest.importorskip("timm")
    return timm.create_model("convnext_atto", pretrained=False, num_classes=CLASSES, depths=(1, 1, 1, 1))


def _images(size: int, argument: str = "x") -> Callable[[], dict[str, Any]]:
    return lambda: {argument: torch.randn(4, 3, size, size)}


# ---- torch-geometric ----------------------------------------------------------------------------------------------


class _Gcn(nn.Module):
    """Two layers, as in Kipf and Welling 2017."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.second = layer(6, 16), layer(16, CLASSES)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(self.first(x, edges).relu(), edges)


def _gcn() -> nn.Module:
    return _Gcn(pytest.importorskip("torch_geometric").nn.GCNConv)


def _graph() -> dict[str, Any]:
    ring = torch.arange(10)
    edges = torch.stack([ring, (ring + 1) % 10])
    return {"x": torch.randn(10, 6), "edges": torch.cat([edges, edges.flip(0)], 1)}


CASES = {
    "bert": Case(
        _bert, _sentences, True, (), ("bert.encoder.layer.0.attention.self", "bert.encoder.layer.1.attention.self")
    ),
    "gpt2": Case(_gpt2, _tokens, True, (), ("transformer.h.0.attn", "transformer.h.1.attn")),
    "llama": Case(
        _llama,
        _tokens,
        True,
        ("*rotary_emb",),
        ("model.layers.0.self_attn", "model.layers.1.self_attn"),
    ),
    "resnet18": Case(_resnet18, _images(64)),
    "mobilenet_v3_small": Case(_mobilenet_v3, _images(64)),
    "vit": Case(_vit, _images(32)),
    "convnext_atto": Case(_convnext_atto, _images(64)),
    "gcn": Case(_gcn, _graph),
}

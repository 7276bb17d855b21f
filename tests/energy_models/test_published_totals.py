"""Counts of models written here in a few lines, against the totals and formulas that their papers print.

Sources:
    He et al. 2016, "Deep Residual Learning for Image Recognition", table 1; the stride is in a block's first 1x1.
    Simonyan and Zisserman 2015, table 1; He et al. 2016, section 4.1, for the VGG's totals.
    Kaplan et al. 2020, "Scaling Laws for Neural Language Models", table 1: FLOPs of the forward pass, per token.
    Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", equation 3 and appendix:
        FLOPs of a training step in which every block is computed again in the backward pass.
    Chowdhery et al. 2022, "PaLM", appendix B: FLOPs of a training step, per token.
A multiply-accumulate is two FLOPs in the last three, and one in the first two.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

import energy_models as em

# ---- residual networks -------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1, stride, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(width, 4 * width, 1, bias=False)
        same = stride == 1 and channels == 4 * width
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels, 4 * width, 1, stride, bias=False)

    def forward(self, x_nchw: Tensor) -> Tensor:
        inner = self.expand(self.conv(self.reduce(x_nchw).relu()).relu())
        return (inner + self.shortcut(x_nchw)).relu()


def resnet(repeats: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, padding=3, bias=False), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
    channels = 64
    for stage, count in enumerate(repeats):
        for block in range(count):
            layers.append(Bottleneck(channels, 64 * 2**stage, 2 if stage and not block else 1))
            channels = 4 * 64 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


@pytest.mark.parametrize(("repeats", "printed"), [((3, 4, 6, 3), 3.8), ((3, 4, 23, 3), 7.6), ((3, 8, 36, 3), 11.3)])
def test_resnets(repeats: tuple[int, ...], printed: float) -> None:
    with torch.device("meta"):
        model, x = resnet(repeats), torch.zeros(1, 3, 224, 224)
    giga = em.count(model, x, training=False).total_macs / 1e9
    assert giga == pytest.approx(printed, abs=0.06)  # of 3.858 the paper prints 3.8


def test_resnet_50_by_stage() -> None:
    """A block of width w on p x p positions: 1x1 into w, 3x3, 1x1 into 4 w; a shortcut in the first of a stage."""
    with torch.device("meta"):
        model, x = resnet((3, 4, 6, 3)), torch.zeros(1, 3, 224, 224)
    total, channels = 112**2 * 64 * 3 * 49 + 2048 * 1000, 64
    for width, size, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        total += size**2 * (channels * width + blocks * (9 * width**2 + 4 * width**2))
        total += size**2 * (channels * 4 * width + (blocks - 1) * 4 * width**2)
        channels = 4 * width
    assert em.count(model, x, training=False).total_macs == total == 3_857_973_248
    step = em.count(model, x)
    first = 112**2 * 64 * 3 * 49
    assert step.macs == {"output": total, "grad_input": total - first, "grad_weight": total}


def test_vgg_19() -> None:
    layers: list[nn.Module] = []
    channels = 3
    for width, repeats in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, width, 3, padding=1, device="meta"), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(512 * 49, 4096, device="meta"), nn.Linear(4096, 4096, device="meta"))
    model = nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000, device="meta"))
    counts = em.count(model, torch.zeros(1, 3, 224, 224, device="meta"), training=False)
    assert f"{counts.total_macs / 1e9:.1f}" == "19.6"


# ---- decoders ----------------------------------------------------------------------------------------------------

LAYERS, DIM, CONTEXT, WORDS, HEADS = 12, 768, 1024, 50257, 12  # GPT-2, the small one
BATCH = 2
# Kaplan's N: what the matrices hold that are multiplied in a block; 4 d^2 of attention and 8 d^2 of the MLP.
WEIGHTS = LAYERS * 12 * DIM**2


class Block(nn.Module):
    """Attention in plain products, as the formulas take it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x_ntd: Tensor) -> Tensor:
        heads = self.qkv(self.norm1(x_ntd)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind()
        mixed = self.mix(query, key, value)
        x_ntd = x_ntd + self.proj(mixed.transpose(1, 2).flatten(-2))
        mlp: Tensor = self.down(self.up(self.norm2(x_ntd)).relu())
        return x_ntd + mlp

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        hidden = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool, device=query.device).triu(1)
        scores = (query @ key.transpose(-1, -2)).masked_fill(hidden, -torch.inf)
        return scores.softmax(-1) @ value


class FusedBlock(Block):
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


class Decoder(nn.Module):
    """GPT-2 (Radford et al. 2019); its output layer has weights of its own. again: blocks are computed anew."""

    def __init__(self, block: type[Block] = Block, again: bool = False) -> None:
        super().__init__()
        self.again = again
        self.words, self.places = nn.Embedding(WORDS, DIM), nn.Embedding(CONTEXT, DIM)
        self.blocks = nn.ModuleList(block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, WORDS, bias=False)

    def forward(self, words_nt: Tensor) -> Tensor:
        x = self.words(words_nt) + self.places(torch.arange(words_nt.shape[1], device=words_nt.device))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def counted(training: bool, block: type[Block] = Block, again: bool = False) -> em.OpCounts:
    with torch.device("meta"):
        model = Decoder(block, again)
    return em.count(model, torch.zeros(BATCH, CONTEXT, dtype=torch.long), training=training)


@pytest.mark.parametrize("block", [Block, FusedBlock])
def test_forward_pass_of_a_decoder(block: type[Block]) -> None:
    """Kaplan's total leaves the output layer out and counts the scores that causal attention needs, n_ctx / 2 a token
    (of two products); here attention is counted in full, and what a mask hides is `zeros.causal`."""
    counts = counted(False, block)
    per_token = 2 * WEIGHTS + 2 * LAYERS * CONTEXT * DIM
    masked_half = 2 * LAYERS * CONTEXT * DIM
    assert 2 * counts.total_macs == BATCH * CONTEXT * (per_token + masked_half + 2 * DIM * WORDS)
    if block is FusedBlock:
        skipped = sum(gemm.skippable_macs("causal") for gemm in counts.gemms)
        # A token sees itself too: (n_ctx + 1) / 2 in the mean.
        assert 2 * skipped == BATCH * CONTEXT * 2 * LAYERS * (CONTEXT - 1) * DIM


def test_training_step_of_a_decoder() -> None:
    """PaLM's 6 N + 12 L H Q T, with N the multiplied weights, the output layer's among them."""
    per_token = 6 * (WEIGHTS + DIM * WORDS) + 12 * LAYERS * DIM * CONTEXT
    assert 2 * counted(True).total_macs == BATCH * CONTEXT * per_token


def test_fused_attention_computes_its_scores_again() -> None:
    scores = BATCH * LAYERS * CONTEXT**2 * DIM
    assert counted(True, FusedBlock).total_macs == counted(True).total_macs + scores


def test_training_step_with_recomputed_blocks() -> None:
    """96 B s l h^2 (1 + s / 6h + V / 16 l h); torch leaves a block's last product out, whose result nothing reads."""
    b, s, h = BATCH, CONTEXT, DIM
    # Multiplied out, so that it stays in whole numbers.
    printed = 96 * b * s * LAYERS * h**2 + 16 * b * s**2 * LAYERS * h + 6 * b * s * WORDS * h
    with set_checkpoint_early_stop(False):
        assert 2 * counted(True, again=True).total_macs == printed
    last = 2 * b * s * LAYERS * 4 * h**2
    assert 2 * counted(True, again=True).total_macs == printed - last

"""ThiNet: channels whose absence the next layer notices least.

Source: Luo, Wu and Lin, "ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression", ICCV 2017: the
samples (section 3.2.1), the greedy algorithm 1 (3.2.2) and the least-squares scales (3.2.3). Samples here have double
precision, so that the order of nearly equal channels does not hang on a rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import zeroed
from lowprec_eb.tickets.graph import BATCH_NORMS
from lowprec_eb.tickets.groups import channel_groups
from lowprec_eb.tickets.members import ChannelGroup, Member
from lowprec_eb.tickets.score_settings import Grouping
from lowprec_eb.tickets.shrinking import Shrinking
from lowprec_eb.tickets.ticket import Ticket

Samples = NDArray[np.float64]  # (samples, channels): what each channel adds to an output; their sum is that output


@dataclass(frozen=True, eq=False)
class Covered:
    """The groups that can be pruned so, in model order, each with the layers that read it.

    left_out: group -> why not. groups: those of tickets (None: one per BatchNorm2d). widths: of all groups.
    """

    readers: Mapping[str, tuple[Member, ...]]
    left_out: Mapping[str, str]
    groups: Sequence[ChannelGroup] | None
    widths: Mapping[str, int]

    def ticket(self, group: str, mask: Tensor, ratio: float, epoch: int, precision: str | None) -> Ticket:
        """The ticket that drops channels of one group alone."""
        masks = everything(self.widths) | {group: mask}
        return Ticket(masks, ratio, epoch, precision=precision, groups=self.groups)


def covered(model: nn.Module, example_inputs: Inputs, grouping: Grouping, only: str | None = None) -> Covered:
    """Which channel groups of ``model`` can be selected by reconstruction; ``only``: look at no other than this one.

    All that reads them must be ungrouped 2-d convolutions with zero padding, or linear layers; and what is dropped
    must go: a residual sum that others write to stays, and is left out.
    """
    coupled = grouping == "coupled"
    groups = channel_groups(model, example_inputs, coupled)
    found = Covered({}, {}, tuple(groups) if coupled else None, {group.name: group.channels for group in groups})
    looked_at = [group for group in groups if only in (None, group.name)]
    reading = {group.name: _readers(model, group) for group in looked_at}
    left_out = {name: why for name, (_, why) in reading.items() if why is not None}
    staying = _staying(model, found, [name for name in reading if name not in left_out], example_inputs)
    left_out |= dict.fromkeys(staying, "other layers write to its channels, too")
    readers = {name: of for name, (of, _) in reading.items() if name not in left_out}
    return replace(found, readers=readers, left_out={name: left_out[name] for name in reading if name in left_out})


def _staying(model: nn.Module, found: Covered, names: Sequence[str], example_inputs: Inputs) -> list[str]:
    """Those of the groups ``names`` of which dropped channels stay in the model, when each loses half of its own.

    One look at all groups that should lose theirs tells whether they do; the others are looked at one by one.
    """
    if not names:
        return []
    shrinking = Shrinking(model, example_inputs, found.groups)
    halves = {name: torch.arange(found.widths[name]) % 2 == 0 for name in names}
    alone = {name: found.ticket(name, half, 0.5, 0, None) for name, half in halves.items()}
    expected = {name: shrinking.removed(ticket.masks) for name, ticket in alone.items()}
    going = [name for name in names if not zeroed(shrinking.graph, alone[name], expected[name])]
    together = shrinking.observe({**everything(found.widths), **{name: halves[name] for name in going}})
    if not all(together[expected[name]].all() for name in going):
        going = []
    return [name for name in names if name not in going and _stays(shrinking, alone[name])]


def _stays(shrinking: Shrinking, ticket: Ticket) -> bool:
    return bool(zeroed(shrinking.graph, ticket, shrinking.observe(ticket.masks)))


def everything(widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Masks that keep all channels."""
    return {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}


def _readers(model: nn.Module, group: ChannelGroup) -> tuple[tuple[Member, ...], str | None]:
    """What reads the channels of ``group``, and why that cannot be rescaled (None: it can)."""
    modules = dict(model.named_modules())
    readers = tuple(m for m in group.members if m.side == "in" and not isinstance(modules[m.module], BATCH_NORMS))
    strange = [m.module for m in readers if not _is_plain(modules[m.module])]
    if group.unit != "channel" or strange or not readers:
        return readers, f"read by {', '.join(strange) or 'no layer that sums over channels'}"
    return readers, None


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def kept_channels(width: int, rate: float) -> int:
    """How many of ``width`` channels stay where each layer drops the share ``rate``: one at least."""
    return max(1, round((1 - rate) * width))


@torch.no_grad()
def contributions(
    layer: nn.Module, inputs: Tensor, reader: Member, channels: int, positions: int, generator: torch.Generator
) -> Samples:
    """What each channel adds to randomly sampled outputs of ``layer``, ``positions`` of them for each image.

    A sample is an image, a place and an output channel. ``inputs``: of the layer. Returns (samples, channels); the bias
    adds to none.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    seen = inputs.detach().cpu().double()
    if isinstance(layer, nn.Conv2d):
        added = _of_convolution(layer, seen, positions, generator)
    else:
        added = _of_linear(layer, seen, positions, generator)
    of_channels = torch.zeros(added.shape[0], channels, dtype=torch.float64)
    of_channels.index_add_(1, torch.tensor(reader.channels), added[:, list(reader.positions)])
    return np.asarray(of_channels.numpy())


def _of_convolution(layer: nn.Conv2d, inputs: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    (height, width), (down, right) = layer.kernel_size, layer.stride
    above, left = (int(zeros) for zeros in layer.padding)
    tall, wide = layer.dilation
    padded = nn.functional.pad(inputs, (left, left, above, above))
    rows = (padded.shape[2] - tall * (height - 1) - 1) // down + 1
    columns = (padded.shape[3] - wide * (width - 1) - 1) // right + 1
    image = torch.arange(inputs.shape[0]).repeat_interleave(positions)
    row, column, written = (_draw(n, len(image), generator) for n in (rows, columns, layer.out_channels))
    y = (row * down)[:, None, None] + (torch.arange(height) * tall)[None, :, None]
    x = (column * right)[:, None, None] + (torch.arange(width) * wide)[None, None, :]
    patches = padded.permute(0, 2, 3, 1)[image[:, None, None], y, x]  # (samples, height, width, channels)
    weights = layer.weight.detach().cpu().double().permute(0, 2, 3, 1)[written]
    return (patches * weights).sum((1, 2))


def _of_linear(layer: nn.Linear, inputs: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    per_image = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    image = torch.arange(inputs.shape[0]).repeat_interleave(positions)
    place, written = (_draw(n, len(image), generator) for n in (per_image.shape[1], layer.out_features))
    return per_image[image, place] * layer.weight.detach().cpu().double()[written]


def _draw(below: int, number: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (number,), generator=generator)


def select(samples: Samples, kept: int) -> Tensor:
    """The mask of ``kept`` channels: those dropped are chosen one by one, so that the square of what all dropped ones
    add together stays smallest; bool (channels,). Equal ones: the lower number goes first."""
    products = samples.T @ samples
    together, alone = np.zeros(len(products)), np.diag(products)
    mask = np.ones(len(products), np.bool_)
    for _ in range(len(products) - kept):
        loss = np.where(mask, 2 * together + alone, np.inf)
        worst = int(loss.argmin())
        mask[worst] = False
        together = together + products[worst]
    return torch.from_numpy(mask)


def scales(samples: Samples, mask: Tensor) -> Tensor:
    """By how much each channel that stays is multiplied, so that they give the whole output again as well as they can;
    (channels,), 1 for the others. Of several solutions the one nearest to 1."""
    kept = mask.numpy()
    missing = samples[:, ~kept].sum(1)
    change, *_ = np.linalg.lstsq(samples[:, kept], missing, rcond=None)
    found = torch.ones(len(kept), dtype=torch.float64)
    found[mask] += torch.from_numpy(change)
    return found


@torch.no_grad()
def rescale(layer: nn.Module, reader: Member, by: Tensor) -> None:
    """Multiply what ``layer`` reads of each channel by ``by`` (channels,), in its weights, in place."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    factors = torch.ones(weight.shape[1], dtype=torch.float64)
    factors[list(reader.positions)] = by[list(reader.channels)]
    shape = (1, -1, *(1 for _ in weight.shape[2:]))
    weight.mul_(factors.to(weight).reshape(shape))


def sample_products(layer: nn.Module, samples: int, channels: int, kept: int) -> int:
    """Multiplications (each with an addition) of one reader's share: its samples, their products with each other, the
    greedy choice, and the least squares by orthogonalisation."""
    kernel = layer.weight[0].numel() if isinstance(layer.weight, Tensor) else 0
    return samples * kernel + samples * channels**2 + (channels - kept) * channels + samples * kept**2

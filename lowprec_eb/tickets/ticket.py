"""Tickets: the channels kept, and where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb import checkpoints
from lowprec_eb.tickets.importance import gamma_scores
from lowprec_eb.tickets.masks import keep_largest, mask_distance
from lowprec_eb.tickets.members import ChannelGroup, Member, check_names

_NORM_TENSORS = (("weight", 0), ("bias", 0))


@dataclass(frozen=True, eq=False)
class Ticket:
    """A channel subnetwork.

    Args:
        masks: by group, bool (channels,); True stays.
        ratio: the share of channels that was to be dropped.
        epoch: how many epochs had been trained when it was drawn.
        distances: the mask distances that the detector compared with its threshold; empty without a detector.
        on_time: False when no ticket had appeared by the deadline and this is the best so far.
        precision: name of the precision of the training it was drawn from (None: not said).
        groups: the coupled groups that the masks are of. None: one group per BatchNorm2d, named after it.

    Raises:
        ValueError: a mask is not bool (channels,), or the masks are not those of ``groups``.
    """

    masks: Mapping[str, Tensor]
    ratio: float
    epoch: int
    distances: tuple[float, ...] = field(default=())
    on_time: bool = True
    precision: str | None = None
    groups: Sequence[ChannelGroup] | None = None

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 1:
                given = (
                    f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                )
                raise ValueError(f"{name}: a mask is a bool tensor (channels,), got {given}")
        if self.groups is None:
            return
        object.__setattr__(self, "groups", tuple(self.groups))
        check_names(self.groups)
        widths = {group.name: group.channels for group in self.groups}
        if widths != {name: mask.numel() for name, mask in self.masks.items()}:
            raise ValueError("a ticket needs a mask for each of its groups, of the group's number of channels")

    @property
    def channels_kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def channels_total(self) -> int:
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def widths(self) -> dict[str, int]:
        """Channels kept, by group."""
        return {layer: int(mask.sum()) for layer, mask in self.masks.items()}

    @property
    def fingerprint(self) -> str:
        """A hash of the masks: it tells apart what was pruned how."""
        content = b"".join(name.encode() + bytes(mask.tolist()) for name, mask in sorted(self.masks.items()))
        return hashlib.sha256(content).hexdigest()[:12]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set what the dropped channels are written with to zero, in place: what a compacted model must equal.

        Without groups that is gamma and beta of each BatchNorm; with groups also weights and biases of the layers.

        Raises:
            ValueError: see :meth:`check`; nothing is changed then.
        """
        for tensor, dim, positions in self._zeros(model):
            tensor.index_fill_(dim, positions.to(tensor.device), 0)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError if the ticket is of another model: a layer is missing, or has another width."""
        self._zeros(model)

    def _zeros(self, model: nn.Module) -> list[tuple[nn.Parameter, int, Tensor]]:
        """Parameters that are to be zero: the dimension, and the positions along it."""
        modules = dict(model.named_modules())
        found = []
        for name, mask in self.masks.items():
            dropped = ~mask.cpu()
            for member in self.written(name):
                of_positions = torch.zeros(max(member.positions) + 1, dtype=torch.bool)
                of_positions[list(member.positions)] = dropped[list(member.channels)]
                for tensor, dim in _tensors(modules, name, member):
                    if self.groups is None and tensor.shape[dim] != mask.numel():
                        raise ValueError(_other_width(member, tensor.shape[dim]))
                    if isinstance(tensor, nn.Parameter):
                        found.append((tensor, dim, of_positions.nonzero().flatten()))
        return found

    def unit(self, group: str) -> str:
        """What one channel of ``group`` is: ``"channel"`` or ``"head"``."""
        return "channel" if self.groups is None else next(g.unit for g in self.groups if g.name == group)

    def written(self, group: str) -> list[Member]:
        """The sides of modules that write the channels of ``group``."""
        if self.groups is not None:
            members = next(known.members for known in self.groups if known.name == group)
            return [member for member in members if member.side == "out"]
        channels = tuple(range(self.masks[group].numel()))
        return [Member(group, "out", channels, channels, _NORM_TENSORS)]

    def distance(self, other: Ticket) -> float:
        """The mask distance to another ticket of the same groups, in [0, 1]; see :func:`lowprec_eb.mask_distance`."""
        return mask_distance(self.masks, other.masks)

    def compare(self, other: Ticket) -> dict[str, dict[str, int]]:
        """By group, how many channels both keep, this one alone, the other alone, and neither.

        Raises:
            ValueError: the tickets are of different groups or widths.
        """
        self.distance(other)  # raises
        found = {}
        for name, mask in self.masks.items():
            mine, theirs = mask.cpu(), other.masks[name].cpu()
            parts = {
                "both": mine & theirs,
                "first": mine & ~theirs,
                "second": theirs & ~mine,
                "neither": ~mine & ~theirs,
            }
            found[name] = {part: int(flags.sum()) for part, flags in parts.items()}
        return found

    def save(self, path: str | Path) -> None:
        """Write the ticket to one file: masks as safetensors, the rest as JSON in its header. Whole or not at all."""
        tensors, plain = checkpoints.pack(self.to_tree())
        checkpoints.save(path, tensors, {"ticket": plain})

    @classmethod
    def load(cls, path: str | Path) -> Ticket:
        """Read what :meth:`save` wrote, for any model with the same layers.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no ticket.
        """
        tensors, meta = checkpoints.load(path)
        if "ticket" not in meta:
            raise ValueError(f"{path}: holds no ticket; give a file that Ticket.save wrote")
        return cls.from_tree(checkpoints.unpack(tensors, meta["ticket"]))

    def to_tree(self) -> dict[str, Any]:
        """Plain nested data, for a checkpoint."""
        groups = None if self.groups is None else [asdict(group) for group in self.groups]
        masks = {name: mask.cpu() for name, mask in self.masks.items()}
        return {**self.__dict__, "masks": masks, "groups": groups}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Ticket:
        groups = None if tree["groups"] is None else tuple(ChannelGroup.from_tree(group) for group in tree["groups"])
        return cls(**{**tree, "distances": tuple(tree["distances"]), "groups": groups})


def _tensors(modules: Mapping[str, nn.Module], group: str, member: Member) -> list[tuple[Tensor, int]]:
    """A member's tensors in a model, each with its dimension."""
    found = []
    for name, dim in member.tensors:
        tensor = getattr(modules.get(member.module), name, None)
        if not isinstance(tensor, Tensor) or tensor.dim() <= dim:
            raise ValueError(f"the ticket's layer {member.module!r} (of group {group!r}) is not in this model")
        if tensor.shape[dim] <= max(member.positions):
            raise ValueError(_other_width(member, tensor.shape[dim]))
        found.append((tensor, dim))
    return found


def _other_width(member: Member, width: int) -> str:
    positions = max(member.positions) + 1
    return f"layer {member.module!r}: the ticket has channels up to number {positions}, the model's has {width}"


def draw_by_gamma(model: nn.Module, ratio: float, *, epoch: int, precision: str | None = None) -> Ticket:
    """The ticket of network slimming (Liu et al. 2017): the channels with the largest ``|gamma|`` stay."""
    return Ticket(keep_largest(gamma_scores(model), ratio), ratio, epoch, precision=precision)


def _kind(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

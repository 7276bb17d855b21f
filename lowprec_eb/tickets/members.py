"""Channel groups as plain data: what is dropped or kept as a whole, and where in the model it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload


@dataclass(frozen=True)
class Member:
    """One side of a module that a group's channels pass through.

    ``positions[i]`` along the cut dimension of ``tensors`` belongs to channel ``channels[i]`` of the group; several
    positions may belong to one channel (behind a flatten, in an attention head, in a group of a convolution).

    Args:
        module: its name in the model.
        side: ``"out"``, it writes these channels, or ``"in"``, it reads them.
        tensors: the module's parameters and buffers that are cut, each with the dimension.
    """

    module: str
    side: Literal["out", "in"]
    positions: tuple[int, ...]
    channels: tuple[int, ...]
    tensors: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Member:
        tensors = tuple((str(name), int(dim)) for name, dim in tree["tensors"])
        return cls(tree["module"], tree["side"], tuple(tree["positions"]), tuple(tree["channels"]), tensors)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that every member keeps or drops alike. ``unit``: what one of them is."""

    name: str
    channels: int
    members: tuple[Member, ...]
    unit: Literal["channel", "head"] = "channel"

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> ChannelGroup:
        members = tuple(Member.from_tree(member) for member in tree["members"])
        return cls(tree["name"], tree["channels"], members, tree["unit"])


@dataclass(frozen=True)
class ChannelGroups(Sequence[ChannelGroup]):
    """The groups of a model, in its order, and what cannot be pruned: module -> why."""

    groups: tuple[ChannelGroup, ...]
    unprunable: Mapping[str, str]

    def __post_init__(self) -> None:
        check_names(self.groups)

    @overload
    def __getitem__(self, index: int) -> ChannelGroup: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ChannelGroup]: ...
    def __getitem__(self, index: int | slice) -> ChannelGroup | Sequence[ChannelGroup]:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[ChannelGroup]:
        return iter(self.groups)

    def __str__(self) -> str:
        lines = [f"{group.name}: {group.channels} {group.unit}s, {len(group.members)} sides" for group in self.groups]
        return "\n".join([*lines, *(f"{name}: not pruned, {why}" for name, why in self.unprunable.items())])


def check_names(groups: Sequence[ChannelGroup]) -> None:
    """Raise ValueError if two groups have one name: masks and scores are kept by name."""
    twice = [name for name, times in Counter(group.name for group in groups).items() if times > 1]
    if twice:
        raise ValueError(f"each channel group needs a name of its own; given twice: {', '.join(twice)}")

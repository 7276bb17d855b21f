"""A setting that is one of several dataclasses, picked by the name under one of its keys."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

UNKNOWN_CHOICE = "unknown_choice"  # pydantic's type of the error of a name that is none of the choices
_TAG = "tells its class apart"


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Marks a union of frozen dataclasses: ``Annotated[VGGSettings | ResNetSettings, OneOf("name", default="vgg")]``.

    Each of them has a field ``key`` that is a Literal of one text, its name. Settings without the key mean ``default``;
    None: the key must be there. Where null may stand too, it is ``Annotated[..., OneOf(...)] | None``.

    A class that is not the default has no default for ``key`` or :func:`tag`: a digest leaves defaults out, and
    settings of two classes must not hash alike.
    """

    key: str
    default: str | None = None

    def names(self, union: Any) -> Mapping[str, type]:
        """The classes of the union by name. Raises TypeError for a union that is not as described above."""
        return _names(self, union)

    def picked(self, union: Any, settings: Any) -> str | None:
        """Which class plain settings (of YAML, JSON) mean; None: none."""
        name = settings.get(self.key, self.default) if isinstance(settings, Mapping) else None
        return name if isinstance(name, str) and name in self.names(union) else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Labels are numbers: they stand in an error's location, where a text could be taken for a key.
        labels = {name: label for label, name in enumerate(self.names(source))}

        def label_of(settings: Any) -> int | None:
            name = self.picked(source, settings)
            return None if name is None else labels[name]

        choices = {labels[name]: handler.generate_schema(member) for name, member in self.names(source).items()}
        return core_schema.tagged_union_schema(
            choices,
            label_of,
            custom_error_type=UNKNOWN_CHOICE,
            custom_error_message=f"the {self.key} is none of the choices",
            custom_error_context={"key": self.key, "names": ", ".join(labels)},
        )


def tag(name: str) -> Any:
    """The default of a choice's key, ``name: Literal["resnet"] = tag("resnet")``; a digest keeps it."""
    return dataclasses.field(default=name, metadata={_TAG: True})


def is_tag(field: dataclasses.Field[Any]) -> bool:
    return _TAG in field.metadata


@cache
def _names(choice: OneOf, union: Any) -> Mapping[str, type]:
    found: dict[str, type] = {}
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get(choice.key) if dataclasses.is_dataclass(member) else None
        name = typing.get_args(hint)
        if typing.get_origin(hint) is not typing.Literal or len(name) != 1 or name[0] in found:
            raise TypeError(
                f"OneOf({choice.key!r}): {member} must be a dataclass with a field {choice.key!r} that is a Literal of "
                "one text, other than the others'"
            )
        field = next(field for field in dataclasses.fields(member) if field.name == choice.key)
        hashed = field.default is dataclasses.MISSING or is_tag(field)
        if not hashed and name[0] != choice.default:
            raise TypeError(f"{member.__name__}.{choice.key}: its default must be tag({name[0]!r}), or there is none")
        found[name[0]] = member
    if choice.default is not None and choice.default not in found:
        raise TypeError(f"OneOf({choice.key!r}): the default {choice.default!r} is none of {', '.join(found)}")
    return found

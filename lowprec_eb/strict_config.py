"""Strict YAML -> frozen dataclasses, and back to plain data and a hash.

Knows nothing about experiments: the settings are any tree of dataclasses whose fields are int, float, bool, str,
Path, Literal, ``X | None``, ``tuple[X, ...]``, ``Mapping[str, X]`` or further dataclasses. Where a field may hold one
of several dataclasses, the union is marked with :class:`lowprec_eb.one_of.OneOf`: a key names the class.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lowprec_eb.one_of import UNKNOWN_CHOICE, OneOf, is_tag

T = TypeVar("T")
KeyPath = tuple[str, ...]  # ("pipelines", "0", "precision") is written pipelines.0.precision


class ConfigError(ValueError):
    """Settings that cannot be used; ``problems`` holds one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def load(path: str | Path, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a YAML 1.2 file into the dataclass ``cls``; nothing is converted except int to float and list to tuple.

    An override is ``a.b.c=value`` (``pipelines.0.precision=fp32`` reaches into a list); its value is read as YAML, and
    it means what the same lines in the file would mean. Raises ConfigError with every problem found, one a line: the
    file or the override, the key, what to do.
    """
    settings = _read_mapping(Path(path))
    origins: dict[KeyPath, str] = {(): str(path)}
    problems: list[str] = []
    for override in overrides:
        try:
            origins[_apply_override(settings, override)] = f"override {override!r}"
        except ConfigError as error:
            problems += error.problems
    try:
        result = _validated(settings, cls, origins)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return result


def read_plain(tree: Any, cls: type[T], origin: str) -> T:
    """Settings from what ``to_plain`` made of them; ``origin`` says in errors where they come from.

    Raises:
        ConfigError: they do not fit ``cls``, as settings of another version may not.
    """
    if not isinstance(tree, dict):
        raise ConfigError([f"{origin}: expected settings by name, got {_show(tree)}"])
    return _validated(tree, cls, {(): origin})


def top_keys(path: str | Path) -> tuple[str, ...]:
    """The keys at the top of a YAML file: what kind of settings it holds.

    Raises:
        ConfigError: the file is not there, or holds no settings.
    """
    return tuple(_read_mapping(Path(path)))


def to_plain(obj: Any) -> Any:
    """Settings as JSON-able data (dataclass -> dict, tuple -> list, Path -> str); ``load`` reads back an equal object.

    Raises ValueError for a value that is neither plain data nor a dataclass.
    """
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: to_plain(getattr(obj, field.name)) for field in dataclasses.fields(obj) if field.init}
    return _plain_value(obj, to_plain)


def digest(obj: Any, length: int = 10) -> str:
    """The first ``length`` (1 to 64) hex digits of the sha256 of the non-default settings; it names a run.

    A field equal to its default is left out, so adding an option with a default later keeps every old hash; a
    :func:`lowprec_eb.one_of.tag` stays, since it tells classes apart. A field
    with ``compare=False`` is left out too: settings that compare equal hash equal. Changing a default changes what old
    hashes mean, so add a new option instead.
    """
    if not 1 <= length <= 64:
        raise ValueError(f"digest: length is {length}; a sha256 has 1 to 64 hex digits to give")
    canonical = json.dumps(_non_default(obj), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def _non_default(obj: Any) -> Any:
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        fields = [field for field in dataclasses.fields(obj) if field.init and field.compare]
        return {
            field.name: _non_default(getattr(obj, field.name))
            for field in fields
            if is_tag(field) or not _is_default(field, getattr(obj, field.name))
        }
    if isinstance(obj, float) and obj.is_integer() and abs(obj) < 2**53:
        return int(obj)  # lr=1 and lr=1.0 are equal settings
    return _plain_value(obj, _non_default)


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    return value is field.default or bool(value == field.default)  # `is`: a default of nan


def _plain_value(obj: Any, convert: Any) -> Any:
    if obj is None or isinstance(obj, bool | int | float | str):
        return obj
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, Mapping):
        return {str(key): convert(value) for key, value in obj.items()}
    if isinstance(obj, tuple | list):
        return [convert(value) for value in obj]
    raise ValueError(f"a setting cannot be of type {type(obj).__name__} ({obj!r}): use plain values and dataclasses")


def _validated(settings: dict[str, Any], cls: type[T], origins: Mapping[KeyPath, str]) -> T:
    try:
        return TypeAdapter(cls).validate_json(json.dumps(settings), strict=True, extra="forbid")
    except ValidationError as error:
        found = [_explain(details, settings, cls, origins) for details in error.errors(include_url=False)]
        raise ConfigError(list(dict.fromkeys(found))) from None


# ---- reading -----------------------------------------------------------------------------------------------------


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {error}"]) from error
    data = _parse_yaml(text, str(path))
    if data is None:
        raise ConfigError([f"{path}: the file is empty; write the settings as `key: value` lines"])
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: expected `key: value` lines at the top, got {_show(data)}"])
    return data


def _parse_yaml(text: str, origin: str) -> Any:
    """The JSON-able value of a YAML text. Errors name the line and column."""
    try:  # pure: the C parser that may be installed beside ruamel.yaml reads YAML 1.1, where 1e-4 is a string
        data = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError([f"{origin}{at}: {error.problem or error.context}"]) from None
    except YAMLError as error:
        raise ConfigError([f"{origin}: {' '.join(str(error).split())}"]) from None
    problems: list[str] = []
    plain = _require_json(data, (), origin, problems)
    if problems:
        raise ConfigError(problems)
    return plain


def _require_json(value: Any, path: KeyPath, origin: str, problems: list[str]) -> Any:
    """``value`` with whole-number keys as text; what JSON cannot hold (dates, sets, other keys) becomes a problem."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_require_json(item, (*path, str(i)), origin, problems) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        what = f"YAML reads this as a {type(value).__name__}; put it in quotes to get text"
        problems.append(_line(origin, path, what))
        return None
    plain: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, str | int):
            problems.append(_line(origin, path, f"the key {_show(key)} is not text; put it in quotes"))
        elif str(key) in plain:
            problems.append(_line(origin, path, f"the key {str(key)!r} stands twice"))
        else:
            plain[str(key)] = _require_json(item, (*path, str(key)), origin, problems)
    return plain


def _apply_override(settings: dict[str, Any], override: str) -> KeyPath:
    """Put the override into ``settings``; returns the path of the first part that was not there before."""
    origin = f"override {override!r}"
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or "" in path:
        raise ConfigError([f"{origin}: expected `key.key=value`"])
    value = _parse_yaml(text, origin)
    node: Any = settings
    made = len(path)
    for depth in range(1, len(path)):
        slot = _slot(node, path[:depth], origin)
        child = node.get(slot) if isinstance(node, dict) else node[slot]
        if child is None:
            made = min(made, depth)
            child = node[slot] = {}
        elif not isinstance(child, dict | list):
            raise ConfigError([_line(origin, path[:depth], f"is {_show(child)}; it has no keys below it")])
        node = child
    node[_slot(node, path, origin)] = value
    return path[:made]


def _slot(node: dict[str, Any] | list[Any], path: KeyPath, origin: str) -> Any:
    """What to index ``node`` with to reach the last part of ``path``."""
    if isinstance(node, dict):
        return path[-1]
    if path[-1].isdecimal() and int(path[-1]) < len(node):
        return int(path[-1])
    reach = f"the list has entries 0 to {len(node) - 1}" if node else "the list is empty"
    raise ConfigError([_line(origin, path, f"no such entry; {reach}")])


# ---- explaining --------------------------------------------------------------------------------------------------

_EXPECTED = {  # pydantic's error type -> what the person should write
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "`key: value` lines",
    "dataclass_type": "`key: value` lines",
    "none_required": "null",
    UNKNOWN_CHOICE: "`key: value` lines",
}


def _explain(details: ErrorDetails, settings: dict[str, Any], cls: type, origins: Mapping[KeyPath, str]) -> str:
    kind = details["type"]
    path = _key_path(details["loc"], settings, keep_last=kind == "missing")
    given = details["input"]
    if kind == "unexpected_keyword_argument":
        what = _unknown_key(path, settings, cls)
    elif kind == "missing":
        what = "missing; it has no default, so give it a value"
    elif kind == "value_error":
        what = str(details["ctx"]["error"])
    elif kind == "literal_error":
        expected = str(details["ctx"]["expected"])
        what = _expected_one_of(re.findall(r"'([^']*)'", expected), expected, given)
    elif kind == UNKNOWN_CHOICE and isinstance(given, dict):
        path, what = _unknown_choice(path, details["ctx"], given)
    elif kind in _EXPECTED:
        what = f"expected {_EXPECTED[kind]}, got {_show(given)}"
    else:
        what = f"{details['msg']}, got {_show(given)}"
    origin = next(origins[path[:n]] for n in range(len(path), -1, -1) if path[:n] in origins)
    return _line(origin, path, what)


def _expected_one_of(names: Sequence[str], listed: str, given: Any) -> str:
    return f"expected {listed}, got {_show(given)}" + (_nearest(given, names) if isinstance(given, str) else "")


def _unknown_choice(path: KeyPath, context: Mapping[str, Any], given: dict[str, Any]) -> tuple[KeyPath, str]:
    key, names = context["key"], context["names"].split(", ")
    listed = _listed(names)
    if key not in given:
        return (*path, key), f"missing; give {listed}"
    return (*path, key), _expected_one_of(names, listed, given[key])


def _unknown_key(path: KeyPath, settings: dict[str, Any], cls: type) -> str:
    *parent, key = path
    names: set[str] = set()
    for kind, choice, node in _kinds_at(cls, settings, tuple(parent)):
        names |= {name for member in _picked(kind, choice, node) for name in _init_names(member)}
        classes = {} if choice is None else choice.names(kind)
        owners = sorted(name for name, member in classes.items() if key in _init_names(member))
        if choice is not None and owners:
            means = f"is {node[choice.key]!r} here" if choice.key in node else f"is left out: {choice.default!r}"
            return f"is a key of {_listed(owners, 'and')}; {choice.key} {means}, with {', '.join(sorted(names))}"
    return "unknown key" + (_nearest(key, sorted(names)) or f"; the keys here are {', '.join(sorted(names))}")


def _key_path(loc: tuple[int | str, ...], settings: Any, keep_last: bool) -> KeyPath:
    """The keys of an error's location, without the marks pydantic adds for union members and mapping keys."""
    path: list[str] = []
    node = settings
    for i, part in enumerate(loc):
        inside = (isinstance(node, dict) and part in node) or (isinstance(node, list) and part in range(len(node)))
        if inside:
            node = node[part]
        if inside or (keep_last and i == len(loc) - 1):
            path.append(str(part))
    return tuple(path)


def _kinds_at(kind: Any, node: Any, path: KeyPath) -> Iterator[tuple[Any, OneOf | None, Any]]:
    """What may stand at ``path`` below a value of the type ``kind``, and the settings that stand there."""
    for plain, choice in _without_unions(kind):
        if not path:
            yield plain, choice, node
            continue
        below = node[path[0]] if isinstance(node, dict) else node[int(path[0])]
        for member in _picked(plain, choice, node):
            for child in _child_types(member, path[0]):
                yield from _kinds_at(child, below, path[1:])


def _without_unions(kind: Any) -> Iterator[tuple[Any, OneOf | None]]:
    """The members of a union one by one; a union that is a choice stays whole."""
    annotations: list[Any] = []
    if typing.get_origin(kind) is typing.Annotated:
        kind, *annotations = typing.get_args(kind)
    choice = next((annotation for annotation in annotations if isinstance(annotation, OneOf)), None)
    if choice is None and typing.get_origin(kind) in (typing.Union, types.UnionType):
        for member in typing.get_args(kind):
            yield from _without_unions(member)
    else:
        yield kind, choice


def _picked(kind: Any, choice: OneOf | None, node: Any) -> tuple[Any, ...]:
    """``kind`` itself, or of a choice the class that the settings name."""
    if choice is None:
        return (kind,)
    name = choice.picked(kind, node)
    return () if name is None else (choice.names(kind)[name],)


def _child_types(kind: Any, key: str) -> Iterator[Any]:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        if key in hints:
            yield hints[key]
    else:  # tuple[X, ...] and Mapping[str, X]: the element type is among the arguments
        yield from typing.get_args(kind)


def _init_names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.init} if dataclasses.is_dataclass(kind) else set()


def _nearest(word: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _listed(names: Sequence[str], last: str = "or") -> str:
    quoted = [repr(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {last} {quoted[-1]}"


def _line(origin: str, path: KeyPath, what: str) -> str:
    return ": ".join([origin, *([".".join(path)] if path else []), what])


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)

"""Files that are either whole or absent: tensors with their settings (safetensors), and texts. No pickle anywhere.

``pack`` splits a nested state_dict into tensors and a JSON-able tree, so an optimizer is saved the same way:

    tensors, plain = pack({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    save(path, tensors, {"state": plain, "epoch": 3})
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from energy_models.files import replacing

_RESERVED = "__metadata__"  # safetensors keeps its own text under this name
_META_KEY = "lowprec_eb"


def save(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``meta`` into one file; a crash at any point leaves the old file or the new one.

    Tensors may share memory, lie anywhere and have any strides; each is stored by value. ``meta`` holds what JSON holds
    (text keys; lists, no tuples; nan and infinities are kept). Creates the folder. Raises ValueError naming the entry
    that cannot be stored.
    """
    _require_json(meta, "meta")
    stored = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    with replacing(Path(path)) as temporary:
        # not save_file: it puts its own file there, readable by its owner only whatever the umask says
        temporary.write_bytes(to_bytes(stored, metadata={_META_KEY: json.dumps(meta)}))


def load(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what ``save`` wrote: the tensors on ``device`` and the meta.

    A missing file raises FileNotFoundError; one that is damaged or of another kind raises ValueError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such checkpoint")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            meta = json.loads((file.metadata() or {})[_META_KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118 - not a mapping
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: not a whole checkpoint ({error}); delete it, and its stage runs again from its start"
        ) from error


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file; a crash at any point leaves the old file or the new one. Creates the folder."""
    with replacing(Path(path)) as temporary:
        temporary.write_text(text, encoding="utf-8")


# ---- nested state ------------------------------------------------------------------------------------------------


def pack(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a tree of dicts (text or whole-number keys), lists, tuples, tensors, numbers, bools, texts and None.

    Returns the tensors by name (not copied, detached) and the rest as JSON-able data, from which ``unpack`` makes the
    tree again exactly; only an OrderedDict comes back as dict and a Parameter as Tensor. Raises ValueError naming the
    entry that is none of these.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(tree, "", tensors)


def unpack(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """The tree that ``pack`` split. Raises ValueError when the two parts do not belong together."""
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    if isinstance(plain, list):
        return [unpack(tensors, item) for item in plain]
    if isinstance(plain, dict) and len(plain) == 1:
        ((kind, content),) = plain.items()
        if kind == "tuple":
            return tuple(unpack(tensors, item) for item in content)
        if kind == "dict":
            return {key: unpack(tensors, item) for key, item in content}
        if kind == "tensor":
            if content not in tensors:
                raise ValueError(f"unpack: the tree needs the tensor {content!r}, which is not among the tensors")
            return tensors[content]
    raise ValueError(f"unpack: {plain!r} is nothing that pack writes; give it the second value that pack returned")


def _pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if isinstance(tree, Tensor):
        unique = _unused(name, tensors)
        tensors[unique] = tree.detach()
        return {"tensor": unique}
    if type(tree) in (list, tuple):
        items = [_pack(item, _below(name, i), tensors) for i, item in enumerate(tree)]
        return items if type(tree) is list else {"tuple": items}
    if type(tree) in (dict, OrderedDict):
        for key in tree:
            if type(key) not in (str, int):
                raise ValueError(f"pack: {name or 'the tree'} has the key {key!r}; use text or whole numbers as keys")
        return {"dict": [[key, _pack(item, _below(name, key), tensors)] for key, item in tree.items()]}
    raise ValueError(
        f"pack: {name or 'the tree'} is a {type(tree).__name__}; only dicts, lists, tuples, tensors, int, float, bool, "
        "str and None can be saved, so convert it first"
    )


def _below(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _unused(name: str, tensors: Mapping[str, Tensor]) -> str:
    """``name``, or with a mark where keys that contain dots lead to the same name."""
    unique = name or "tensor"
    while unique in tensors or unique == _RESERVED:
        unique += "'"
    return unique


# ---- files -------------------------------------------------------------------------------------------------------


def _storable(name: str, tensor: Tensor) -> Tensor:
    if name == _RESERVED:
        raise ValueError(
            f"save: no tensor can have the name {_RESERVED!r}, which safetensors keeps for itself; rename it"
        )
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError(f"save: the tensor {name!r} is sparse or without data; make it dense first")
    return tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)


def _require_json(value: Any, where: str) -> None:
    """json.dumps alone would turn number keys into text and tuples into lists without a word."""
    if type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(f"save: {where} has the key {key!r}; JSON keys are text")
            _require_json(item, f"{where}.{key}")
    elif type(value) is list:
        for i, item in enumerate(value):
            _require_json(item, f"{where}.{i}")
    elif not (value is None or type(value) in (bool, int, float, str)):
        raise ValueError(f"save: {where} is a {type(value).__name__}, which JSON does not hold; convert it or use pack")

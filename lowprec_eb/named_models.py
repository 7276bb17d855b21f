"""Models by name: of torchvision, timm and Hugging Face, or from a function; never with weights.

They are built on the meta device, where 7e9 parameters take no memory and nothing is downloaded. Only ``hf:`` with the
name of a repository asks for that repository's configuration, unless it is in the cache.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb.format_sheet import parse_shape

_EXTRAS = {"torchvision": "vision", "timm": "vision", "transformers": "transformers"}
_TOKENS = "tokens"
_SEQUENCE = 128
_IMAGE = "3x224x224"


@dataclass(frozen=True)
class NamedModel:
    """A model without values and what is known of its inputs.

    name: with the prefix of where it was found. inputs: example inputs that came with it. defaults: input name ->
    shape as ``--input`` takes it ("": not known), where the library says what its models take; "" names a positional
    input.
    vocabulary: token indices are below.
    """

    name: str
    module: nn.Module
    inputs: Any = None
    defaults: Mapping[str, str] = field(default_factory=dict)
    vocabulary: int = 1


def load_model(text: str, *, in_memory: bool = False) -> NamedModel:
    """The model that ``text`` names.

    Args:
        text: ``torchvision:resnet50``, ``timm:vit_base_patch16_224``, ``hf:LlamaForCausalLM`` (the defaults of its
            configuration class), ``hf:gpt2`` (the configuration of that repository), ``package.module:function`` or
            ``path/to/file.py:function``, which returns a module or a pair of module and inputs. A name without a prefix
            is looked up in torchvision, timm and Hugging Face, in that order.
        in_memory: build it on the CPU with values, for constructors that cannot do without.

    Raises:
        ValueError: nothing has that name (the nearest names are given), or it cannot be built so.
        ImportError: the library is not installed, or cannot be imported.
    """
    prefix, _, name = text.partition(":")
    if prefix in _LIBRARIES:
        library = _LIBRARIES[prefix]
        found = library(name)
        if found is None:
            raise ValueError(f"{prefix} has no model {name!r}{_near(name, _NAMES[prefix]())}")
        return _built(f"{prefix}:{name}", found, in_memory)
    if name:
        return _from_function(text, in_memory)
    return _looked_up(text, in_memory)


def example_inputs(model: NamedModel, specs: Sequence[str], batch: int, *, values: bool = False) -> Any:
    """Inputs of ``batch`` samples as :func:`energy_models.count` takes them.

    Args:
        specs: ``3x224x224``, ``int64:128``, ``tokens:128``, each with ``name=`` before it for a keyword argument; of
            one sample. None: those that came with the model, or the library's own size.
        values: random numbers in place of tensors without values.

    Raises:
        ValueError: a spec cannot be read; there is none and the model does not say what it takes.
    """
    if batch < 1:
        raise ValueError(f"--batch must be 1 or more, got {batch}")
    if model.inputs is not None and not specs:
        return model.inputs
    named = [spec.rpartition("=")[::2] for spec in specs]
    wanted: list[tuple[str, str]]
    if any(model.defaults):  # keyword arguments; the first is what a spec without a name is for
        main = next(iter(model.defaults))
        wanted = list((dict(model.defaults) | {name or main: spec for name, spec in named}).items())
    else:
        wanted = list(named or model.defaults.items())
    unknown = [name for name, spec in wanted if not spec]
    if unknown or not wanted:
        what = f"what shape {', '.join(unknown)} has" if unknown else "what it takes"
        raise ValueError(f"{model.name} does not say {what}: give --input 3x224x224 or --input tokens:128")
    tensors = [(name, _tensor(spec, batch, model.vocabulary, values)) for name, spec in wanted]
    if len({bool(name) for name, _ in tensors}) > 1:
        raise ValueError("--input: give each input a name (name=3x224x224), or none")
    return dict(tensors) if tensors[0][0] else tuple(tensor for _, tensor in tensors)


def _tensor(spec: str, batch: int, vocabulary: int, values: bool) -> Tensor:
    kind, _, shape = spec.rpartition(":")
    dtype = torch.int64 if kind == _TOKENS else getattr(torch, kind or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"--input {spec}: {kind!r} is no type of torch; write 3x224x224, tokens:128 or int64:128")
    size = (batch, *parse_shape(shape))
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(size, dtype=dtype) if values else torch.empty(size, dtype=dtype, device="meta")
    # Indices keep their values in a count.
    return torch.randint(vocabulary, size, dtype=dtype) if values else torch.zeros(size, dtype=dtype)


# ---- building ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """What makes a model, and what is known of its inputs before it is made."""

    make: Callable[[], nn.Module]
    defaults: Mapping[str, str] = field(default_factory=dict)
    vocabulary: int = 1


def _built(name: str, found: _Found, in_memory: bool) -> NamedModel:
    with _building(name, in_memory):
        module = found.make()
    return NamedModel(name, module, None, found.defaults, found.vocabulary)


@contextmanager
def _building(name: str, in_memory: bool) -> Iterator[None]:
    try:
        with torch.device("cpu" if in_memory else "meta"):
            yield
    except Exception as error:  # foreign code: anything
        where = "" if in_memory else " on the meta device, without values; --in-memory builds it with them"
        raise ValueError(f"{name} cannot be built{where}: {type(error).__name__}: {error}") from error


def _from_function(text: str, in_memory: bool) -> NamedModel:
    place, _, name = text.rpartition(":")
    source = _module(place)
    function = getattr(source, name, None)
    if not callable(function):
        names = [key for key, value in vars(source).items() if callable(value)]
        raise ValueError(f"{place} has no function {name!r}{_near(name, names)}")
    with _building(text, in_memory):
        made = function()
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{text} must return a torch.nn.Module, or a pair of one and its inputs, not {made!r:.200}")
    return NamedModel(text, module, inputs)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        if str(Path.cwd()) not in sys.path and "" not in sys.path:
            sys.path.insert(0, str(Path.cwd()))  # a console script does not look there
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place + ".").startswith(error.name + "."):
                raise
            raise ValueError(
                f"there is no module {place!r}; write package.module:function, path/to/file.py:function, or a name "
                f"after {', '.join(f'{prefix}:' for prefix in _LIBRARIES)}"
            ) from error
    return _executed(Path(place))


def _executed(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    name = f"_counted_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # as for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _looked_up(name: str, in_memory: bool) -> NamedModel:
    missing, names = [], []
    for prefix, package in _PACKAGES.items():
        if find_spec(package) is None:
            missing.append(f'{package} (pip install "lowprec-eb[{_EXTRAS[package]}]")')
            continue
        found = _LIBRARIES[prefix](name) if prefix != "hf" or _is_hf(name) else None
        if found is not None:
            return _built(f"{prefix}:{name}", found, in_memory)
        names += _NAMES[prefix]()
    absent = f"; not installed: {', '.join(missing)}" if missing else ""
    raise ValueError(f"no model is called {name!r}{_near(name, names)}{absent}. A function: module:function")


def _near(name: str, names: Sequence[str]) -> str:
    close = get_close_matches(name, dict.fromkeys(names), n=5)
    close = close or [known for known in names if name and known.lower().startswith(name.lower())][:5]
    return f"; near names: {', '.join(close)}" if close else ""


# ---- libraries ---------------------------------------------------------------------------------------------------


def _library(package: str) -> Any:
    if find_spec(package) is None:
        raise ImportError(f'{package} is not installed: pip install "lowprec-eb[{_EXTRAS[package]}]"')
    try:
        return importlib.import_module(package)
    except Exception as error:  # a torchvision for another torch raises RuntimeError
        raise ImportError(f"{package} is installed but cannot be imported: {error}") from error


def _torchvision(name: str) -> _Found | None:
    models = _library("torchvision").models
    if name not in models.list_models():
        return None
    parameters = {"weights": None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        parameters["weights_backbone"] = None
    return _Found(lambda: models.get_model(name, **parameters), {"": _IMAGE})


def _timm(name: str) -> _Found | None:
    timm = _library("timm")
    if not timm.is_model(name):
        return None
    config = timm.get_pretrained_cfg(name)
    shape = "x".join(map(str, config.input_size)) if config is not None else _IMAGE
    return _Found(lambda: timm.create_model(name, pretrained=False), {"": shape})


def _hf(name: str) -> _Found:
    transformers = _library("transformers")
    model = _hf_class(transformers, name)
    config = _hf_config(transformers, name) if model is None else model.config_class()
    if model is None:
        model = _hf_class(transformers, next(iter(config.architectures or ()), "")) or _hf_base(transformers, config)
    if getattr(config, "use_cache", False):
        config.use_cache = False  # training keeps no keys and values for a next token
    return _Found(lambda: model(config), _hf_inputs(model, config), int(getattr(config, "vocab_size", None) or 1))


def _hf_class(transformers: Any, name: str) -> Any:
    found = getattr(transformers, name, None) if name.isidentifier() else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and getattr(found, "config_class", None) else None


def _hf_base(transformers: Any, config: Any) -> Any:
    return transformers.AutoModel._model_mapping[type(config)]


def _hf_config(transformers: Any, name: str) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"hf:{name} is no class of transformers{_near(name, _hf_names())}. As a repository its configuration is "
            f"neither cached nor to be had. Without a network name a class, which is built with its configuration's "
            f"defaults: hf:GPT2LMHeadModel. ({str(error).splitlines()[0]})"
        ) from error


def _hf_inputs(model: Any, config: Any) -> dict[str, str]:
    main, tokens = model.main_input_name, f"{_TOKENS}:{_SEQUENCE}"
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    image = f"{channels}x{size}x{size}" if isinstance(size, int) else _IMAGE
    shape = {"input_ids": tokens, "pixel_values": image}.get(main, "")
    decoder = {"decoder_input_ids": tokens} if getattr(config, "is_encoder_decoder", False) else {}
    return {main: shape} | decoder


def _is_hf(name: str) -> bool:
    """Whether a name without a prefix may be a model of Hugging Face; others would be asked for over the network."""
    transformers = _library("transformers")
    return "/" in name or name in transformers.CONFIG_MAPPING or _hf_class(transformers, name) is not None


def _hf_names() -> list[str]:
    return [name for name in dir(_library("transformers")) if "For" in name or name.endswith(("Model", "LMHeadModel"))]


_PACKAGES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
_LIBRARIES: dict[str, Callable[[str], _Found | None]] = {"torchvision": _torchvision, "timm": _timm, "hf": _hf}
_NAMES: dict[str, Callable[[], list[str]]] = {
    "torchvision": lambda: list(_library("torchvision").models.list_models()),
    "timm": lambda: list(_library("timm").list_models()),
    "hf": _hf_names,
}

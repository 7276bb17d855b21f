"""torch's optimizers from a line of text."""

from __future__ import annotations

import ast
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lowprec_eb.precision import nearest


def named_optimizer(text: str, model: nn.Module) -> Optimizer:
    """An optimizer of ``model``'s trainable parameters: ``adamw`` or, with settings, ``sgd:momentum=0.9``.

    Settings that are not given are torch's defaults.

    Raises:
        ValueError: torch has no such optimizer, or it does not take these settings.
    """
    name, _, settings = text.partition(":")
    classes = {key.lower(): cls for key, cls in vars(torch.optim).items() if _is_optimizer(cls)}
    if name.lower() not in classes:
        raise ValueError(
            f"torch has no optimizer {name!r}{nearest(name.lower(), classes)}; it has {', '.join(classes)}"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        optimizer: Optimizer = classes[name.lower()](trained, **_settings(settings))
    except (TypeError, ValueError, SyntaxError) as error:
        raise ValueError(f"--optimizer {text}: {error}; write it as sgd:momentum=0.9,weight_decay=5e-4") from error
    return optimizer


def _is_optimizer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Optimizer) and found is not Optimizer


def _settings(text: str) -> dict[str, Any]:
    call = ast.parse(f"_({text})", mode="eval").body
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("settings need names")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}

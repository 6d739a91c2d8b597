"""Models by name: a row of `MODELS`, or `package.module:factory` for anybody's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.cnn import Cnn
from fedhybrid.models.mobilenet_v2 import MobileNetV2
from fedhybrid.models.resnet import ResNet18, ResNet20
from fedhybrid.models.vit import Vit
from fedhybrid.registry import lookup, nearest_hint

__all__ = ["MODELS", "build_model", "find_factory"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": Cnn,
    "mobilenet_v2": MobileNetV2,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "vit": Vit,
}


def find_factory(name: str) -> Callable[..., nn.Module]:
    """The factory called `name`, from the table or, with a colon, imported from its module.

    Raises:
        ConfigError: No such row, module or attribute.
    """
    if ":" not in name:
        return lookup("model", MODELS, name)
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"model {name!r} must be package.module:factory that can be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(f"model {name!r} is {factory!r}; it must be a function or class that makes a module")
    return factory  # type: ignore[no-any-return]


def build_model(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised model, in training mode.

    A factory is given `input_shape` (channels, height, width) and `classes` where it names them, and `options`.

    Args:
        name: A row of `MODELS` or `package.module:factory`.
        input_shape: Channels, height, width of one image.
        classes: Number of classes.
        seed: Decides the initial weights; torch's own generator is left as it was.
        options: Options of the factory, such as `{"width": 0.5, "norm": "group"}`.

    Raises:
        ConfigError: Unknown name or option, or a value that the model refuses.
    """
    factory = find_factory(name)
    given = {"input_shape": input_shape, "classes": classes}
    options = dict(options or {})
    parameters = inspect.signature(factory).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    known = sorted(parameters.keys() - given.keys())
    unknown = [key for key in options if key in given or (key not in known and not takes_any)]
    if unknown:
        raise ConfigError(
            [
                f"model {name!r} has no option {key!r}.{nearest_hint(key, known)} Known: {', '.join(known) or 'none'}."
                for key in unknown
            ]
        )
    arguments = {key: value for key, value in given.items() if key in parameters} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory(**arguments)
        except TypeError as error:
            raise ConfigError(f"model {name!r} refuses its options {options}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} made a {type(model).__name__}; it must make a torch.nn.Module")
    return model.train()

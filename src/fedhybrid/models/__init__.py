"""Models by name: a row of `MODELS`, or `package.module:factory` for anybody's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fedhybrid.errors import ConfigError, FedHybridError
from fedhybrid.models.bert import Bert
from fedhybrid.models.char_gpt import CharGpt
from fedhybrid.models.char_lstm import CharLstm
from fedhybrid.models.cnn import Cnn
from fedhybrid.models.cnn1d import Cnn1d
from fedhybrid.models.fourier import Fourier
from fedhybrid.models.mobilenet_v2 import MobileNetV2
from fedhybrid.models.resnet import ResNet18, ResNet20
from fedhybrid.models.vit import Vit
from fedhybrid.registry import import_factory, lookup, nearest_hint

__all__ = ["FROM_DATA", "MODELS", "build_model", "find_factory"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "bert": Bert,
    "char-gpt": CharGpt,
    "char-lstm": CharLstm,
    "cnn": Cnn,
    "cnn1d": Cnn1d,
    "fourier": Fourier,
    "mobilenet_v2": MobileNetV2,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "vit": Vit,
}

FROM_DATA = ("input_shape", "classes", "tokens")  # what a factory is given and no option can be called


def find_factory(name: str) -> Callable[..., nn.Module]:
    """The factory called `name`, from the table or, with a colon, imported from its module.

    Modules in the current folder are found as by `python -m`: an installed command does not look there by itself.

    Raises:
        ConfigError: No such row, module or attribute, or the module fails while it is imported.
    """
    return import_factory("model", name, "a module") if ":" in name else lookup("model", MODELS, name)


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    tokens: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised model, in training mode.

    A factory is given `input_shape`, `classes` and `tokens` where it names them, and `options`.

    Args:
        name: A row of `MODELS` or `package.module:factory`.
        input_shape: Shape of one sample, as `Dataset.input_shape` says it.
        classes: Number of classes.
        seed: Decides the initial weights; torch's own generator is left as it was.
        tokens: How many different ones a text has, as `Dataset.tokens` says it; None: as many as classes, which is so
            where the next one is asked for.
        options: Options of the factory, such as `{"width": 0.5, "norm": "group"}`.

    Raises:
        ConfigError: Unknown name or option, or the factory fails with these values.
    """
    factory = find_factory(name)
    given = dict(zip(FROM_DATA, (input_shape, classes, classes if tokens is None else tokens), strict=True))
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
        except FedHybridError:
            raise
        except Exception as error:  # the factory may be the user's, and torch has many words for "no such layer"
            raise ConfigError(
                f"model {name!r} cannot be made for input {'x'.join(map(str, input_shape))} and {classes} classes "
                f"with options {options}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model {name!r} made a {type(model).__name__}; it must make a torch.nn.Module")
    return model.train()

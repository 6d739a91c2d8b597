"""What a command plans: a model, a random batch and an optimizer, as typed, checked, built and captured."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedhybrid.cli.arguments import attempt, parse_assignments, parse_shape
from fedhybrid.cli.output import notes, stage
from fedhybrid.executor import SGD, Adam, AdamW, PreparedStep, prepare_step
from fedhybrid.models import build_model
from fedhybrid.protocols import Optimizer
from fedhybrid.registry import lookup

__all__ = ["Built", "Subject", "build", "capture", "cross_entropy"]

DEFAULT_LR = {"adam": 1e-3, "adamw": 1e-3, "sgd": 0.05}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One training step as typed on the command line. Plain data, so that it can go to another process as JSON."""

    model: str
    options: tuple[str, ...]
    batch: int
    input_text: str
    classes: int
    optimizer: str
    lr: float | None
    threads: int | None
    tokens: int | None = None

    @property
    def title(self) -> str:
        """The model with its options."""
        return " ".join((self.model, *self.options))


@dataclass(frozen=True, kw_only=True)
class Built:
    """The same with real tensors: weights by seed 0, batch (x, y) by a generator of its own."""

    model: nn.Module
    batch: tuple[Tensor, Tensor]
    optimizer: Optimizer


def cross_entropy(output: Tensor, y: Tensor) -> Tensor:
    """The loss of every step that the command line plans."""
    return functional.cross_entropy(output, y)


def build(subject: Subject, problems: list[str]) -> Built | None:
    """Builds the subject; or None, and everything that is wrong with it in `problems`."""
    before = len(problems)
    problems += _number_problems(subject)
    shape = attempt(problems, lambda: parse_shape(subject.input_text))
    if subject.tokens is not None and shape is not None and len(shape) != 1:
        problems.append(f"--tokens is for texts, whose --input is one number such as 80; got {subject.input_text}")
    options = attempt(problems, lambda: parse_assignments(subject.options))
    attempt(problems, lambda: lookup("optimizer", DEFAULT_LR, subject.optimizer))
    # A wrong shape must not hide a wrong model: the model is then built for some other shape and thrown away.
    model = attempt(problems, lambda: _model_of(subject, shape or (3, 32, 32), options or {}))
    if len(problems) > before:
        return None
    assert shape is not None
    assert model is not None
    draw = torch.Generator().manual_seed(0)
    if len(shape) == 1:
        x = torch.randint(subject.tokens or subject.classes, (subject.batch, *shape), generator=draw)
    else:
        x = torch.randn(subject.batch, *shape, generator=draw)
    y = torch.randint(subject.classes, (subject.batch,), generator=draw)
    return Built(model=model, batch=(x, y), optimizer=_optimizer_of(subject))


def capture(built: Built, *, timed: bool = True) -> PreparedStep:
    """The step, captured and profiled; with `timed` off every operator counts one second, which saves running it."""
    with stage(notes(), "capturing the step and timing its operators"), _logs_silent():
        op_seconds = None if timed else lambda _work: 1.0
        return prepare_step(built.model, cross_entropy, built.batch, built.optimizer, op_seconds=op_seconds)


@contextmanager
def _logs_silent() -> Iterator[None]:
    """Where a model cannot be captured, torch logs a traceback of the error that then ends the command anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _model_of(subject: Subject, shape: tuple[int, ...], options: Mapping[str, Any]) -> nn.Module:
    return build_model(
        subject.model,
        input_shape=shape,
        classes=max(subject.classes, 1),
        tokens=None if subject.tokens is None else max(subject.tokens, 1),
        seed=0,
        options=options,
    )


def _optimizer_of(subject: Subject) -> Optimizer:
    lr = DEFAULT_LR[subject.optimizer] if subject.lr is None else subject.lr
    makers: Mapping[str, Optimizer] = {
        "adam": Adam(lr=lr),
        "adamw": AdamW(lr=lr),
        "sgd": SGD(lr=lr, momentum=0.9),
    }
    return makers[subject.optimizer]


def _number_problems(subject: Subject) -> list[str]:
    limits = [
        ("--batch", subject.batch, subject.batch >= 1, "at least 1"),
        ("--classes", subject.classes, subject.classes >= 1, "at least 1"),
        ("--tokens", subject.tokens, subject.tokens is None or subject.tokens >= 1, "at least 1"),
        ("--lr", subject.lr, subject.lr is None or subject.lr >= 0, "0 or more"),
        ("--threads", subject.threads, subject.threads is None or subject.threads >= 1, "at least 1"),
    ]
    return [f"{option} must be {rule}, got {value}" for option, value, holds, rule in limits if not holds]

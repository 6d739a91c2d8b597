"""The model that a federation begins with where a recipe has a table [pretrain]: from a file, or trained by the server.

What has been trained is kept twice: in the run's folder, so that a run that goes on begins with the same, and in the
cache folder under a checksum of all that it depends on, so that runs and variants share it. (Where that folder cannot
be written, each trains for itself.)
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fedhybrid.data import Dataset, Split
from fedhybrid.data.cache import cache_folder
from fedhybrid.data.chosen import ChosenSplit
from fedhybrid.engine.runtime import Station, Stretch, Workbench, classification_loss, one_thread
from fedhybrid.errors import ConfigError
from fedhybrid.executor import TrainStep, prepare_step
from fedhybrid.experiment.config import PretrainTable, RunConfig, TrainTable
from fedhybrid.experiment.material import base_optimizer, initial_model
from fedhybrid.experiment.samples import is_own, pretraining_rows
from fedhybrid.methods import FedAvg
from fedhybrid.models.importing import own_names
from fedhybrid.models.weights import fitting, head_tensors, redraw_head
from fedhybrid.planner import Plan
from fedhybrid.records import ClientTask, LocalWork
from fedhybrid.seeds import derive_seed
from fedhybrid.tree import Tensors, buffers_of, detached_copy, tensors_of

__all__ = ["PRETRAINED", "Say", "keep_pretrained", "pretrain", "pretraining_split"]

PRETRAINED = "pretrained.safetensors"
Say = Callable[[str], None]
_KEY = "pretrained"  # of the file's metadata; one key only, since safetensors keeps several in no fixed order
_FORM = 1  # of what is stored; another number makes everything anew
_TOLD = 10  # times that training says how far it is
_LOOKED_AT = 64  # samples that tell data sets apart, beside all labels


def pretrain(
    config: RunConfig,
    model: nn.Module,
    dataset: Dataset,
    load: Callable[[str, str | None], Dataset],
    *,
    folder: Path | None = None,
    say: Say = lambda text: None,
) -> bytes | None:
    """Puts pre-trained weights into the run's model, where the recipe asks for them.

    Args:
        config: Of the run.
        model: With its initial weights; it is changed.
        dataset: All of the run's own data set.
        load: Gives another data set by name and folder.
        folder: The run's, where it may have been stored before.
        say: Is told what takes long.

    Returns:
        What is to be stored in the run's folder (`keep_pretrained`); None where nothing has been trained.

    Raises:
        ConfigError: A file that does not fit the model, or data that training cannot use.
        CaptureError: The model's step cannot be captured.
    """
    table = config.pretrain
    if table is None:
        return None
    left_out = head_tensors(model) if table.new_head else frozenset[str]()
    content = None
    if table.weights is not None:
        found = _read(Path(table.weights), model)
        source = f"pretrain.weights: {table.weights}"
    else:
        content, found = _trained_or_kept(config, table, dataset, load=load, folder=folder, say=say)
        source = "pretrain"
    weights = fitting(model, found, source=source, but=left_out)
    own = tensors_of(model)
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    if table.new_head:
        redraw_head(model, derive_seed(config.seed, purpose="pretrain/head"))
    return content


def pretraining_split(
    config: RunConfig, table: PretrainTable, dataset: Dataset, load: Callable[[str, str | None], Dataset]
) -> tuple[Split, int]:
    """The samples that the server trains on before the run, and how many classes they have.

    Args:
        config: Of the run.
        table: Its [pretrain], which names no file of weights.
        dataset: All of the run's own data set.
        load: Gives another data set by name and folder.

    Raises:
        ConfigError: Data that training cannot use, or that clients hold.
    """
    own = is_own(config, table)
    source = dataset if own else load(table.dataset or config.dataset, table.root)
    if source.input_shape != dataset.input_shape:
        shapes = ("x".join(map(str, each.input_shape)) for each in (dataset, source))
        raise ConfigError("pretrain.dataset must have samples of the run's shape, {}; found {}".format(*shapes))
    if source.tokens != dataset.tokens:
        raise ConfigError(
            f"pretrain.dataset must have as many different tokens as the run's, {dataset.tokens or 0:,}; found "
            f"{source.tokens or 0:,}"
        )
    if not own and _same_samples(source.train, dataset.train):
        raise ConfigError(
            "pretrain.dataset is the run's own data, which clients hold; leave pretrain.root out, and hold some back "
            "with pretrain.share or pretrain on other classes"
        )
    classes = table.classes or (config.data.classes if own else None)
    split = ChosenSplit(source.train, pretraining_rows(config, source), classes)
    if len(split) < 1:
        raise ConfigError(f"pretrain: {source.name} has no training samples of these classes")
    return split, source.classes if classes is None else len(classes)


def _same_samples(one: Split, other: Split) -> bool:
    if one is other or not torch.equal(one.labels, other.labels):
        return one is other
    some = torch.linspace(0, len(one) - 1, min(_LOOKED_AT, len(one))).long()
    return torch.equal(one.batch(some)[0], other.batch(some)[0])


def keep_pretrained(folder: Path, content: bytes | None) -> None:
    """Stores what `pretrain` gave in a run's folder, unless it is there already."""
    path = folder / PRETRAINED
    if content is not None and not (path.is_file() and path.read_bytes() == content):
        _store(path, content)


def _read(path: Path, model: nn.Module) -> Tensors:
    try:
        return own_names(model, load_file(path))
    except OSError as error:
        raise ConfigError(f"pretrain.weights: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ConfigError(f"pretrain.weights: {path} is no safetensors file: {error}") from error


def _trained_or_kept(
    config: RunConfig,
    table: PretrainTable,
    dataset: Dataset,
    *,
    load: Callable[[str, str | None], Dataset],
    folder: Path | None,
    say: Say,
) -> tuple[bytes, Tensors]:
    """From the run's folder, from the cache, or trained now."""
    split, classes = pretraining_split(config, table, dataset, load)
    learner = initial_model(config, input_shape=dataset.input_shape, classes=classes, tokens=dataset.tokens)
    key = _key(config, table, learner, split)
    places = [] if folder is None else [folder / PRETRAINED]
    with suppress(RuntimeError):  # no home folder, no cache
        places.append(cache_folder() / f"pretrained-{key}.safetensors")
    for path in places:
        if (kept := _kept(path, key)) is not None:
            return kept
    weights = _trained(config, table, learner, split, say)
    content = save(weights, metadata={_KEY: key})
    with suppress(OSError):
        if places:
            _store(places[-1], content)
    return content, weights


def _key(config: RunConfig, table: PretrainTable, learner: nn.Module, split: Split) -> str:
    """A checksum of all that the result depends on: settings, initial weights, samples, versions."""
    settings = {
        "form": _FORM,
        "versions": [version("fedhybrid"), torch.__version__],
        "model": [config.model, config.model_options],
        "seed": config.seed,
        "table": table.model_dump(exclude={"root", "new_head"}),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors_of(learner).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(split.labels.numpy().tobytes())
    some = torch.linspace(0, len(split) - 1, min(_LOOKED_AT, len(split))).long()
    digest.update(split.batch(some)[0].numpy().tobytes())
    return digest.hexdigest()[:32]


def _kept(path: Path, key: str) -> tuple[bytes, Tensors] | None:
    """What is stored there under this key; None where that is missing, cut short, or of other settings."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(_KEY) != key:
                return None
        return path.read_bytes(), load_file(path)
    except (OSError, SafetensorError):
        return None


def _trained(config: RunConfig, table: PretrainTable, learner: nn.Module, split: Split, say: Say) -> Tensors:
    """Trains as one client would that holds all of these samples, by the unplanned compiled step."""
    train = TrainTable(
        optimizer=table.optimizer or "sgd",
        lr=table.lr or 0.05,
        momentum=table.momentum or 0.0,
        weight_decay=table.weight_decay or 0.0,
    )
    batch_size = table.batch_size or 32
    work = LocalWork(epochs=table.epochs or 1, steps=table.steps, batch_size=batch_size, lr=train.lr)
    steps = table.steps or -(-len(split) // batch_size) * work.epochs
    example = split.batch(torch.arange(batch_size) % len(split))
    say(f"pre-training the model: capturing its step, then {steps} steps on {len(split)} samples")
    with one_thread():
        prepared = prepare_step(
            learner, classification_loss, example, base_optimizer(train), op_seconds=lambda operator: 0.0
        )
        plan = prepared.keep_all()
        station = Station(
            step=_Telling(TrainStep(prepared, plan), steps, say),
            tensors=tensors_of(learner),
            buffers=buffers_of(learner),
        )
        task = ClientTask(
            round_index=0,
            client=0,
            weights=detached_copy(tensors_of(learner)),
            work=work,
            plan=None,
            seed=derive_seed(config.seed, purpose="pretrain"),
        )
        bench = Workbench(model=learner, split=split, station=lambda name: station)
        update = bench.run(FedAvg(), task, np.arange(len(split)), [Stretch(program=plan, steps=steps)], {})
    if not all(bool(tensor.isfinite().all()) for tensor in update.weights.values()):
        raise ConfigError(
            f"pretrain: training did not converge (a weight is not finite); lower pretrain.lr, {train.lr}"
        )
    say(f"pre-trained the model: mean loss {update.loss_mean:.3f} over {update.samples_seen} samples")
    return update.weights


@final
class _Telling:
    """A training step that now and then says how many have been made."""

    def __init__(self, step: TrainStep, steps: int, say: Say) -> None:
        self._step, self._steps, self._say, self._done = step, steps, say, 0

    @property
    def aux(self) -> Tensor | None:
        """Of the last call."""
        return self._step.aux

    def __call__(self, x: Tensor, y: Tensor, /) -> Tensor:
        """One step."""
        self._done += 1
        if self._done % -(-self._steps // _TOLD) == 0:
            self._say(f"pre-training the model: step {self._done} of {self._steps}")
        return self._step(x, y)

    def use_plan(self, plan: Plan, /) -> None:
        """As the step."""
        self._step.use_plan(plan)

    def set_lr(self, lr: float, /) -> None:
        """As the step."""
        self._step.set_lr(lr)

    def reset_optimizer(self) -> None:
        """As the step."""
        self._step.reset_optimizer()

    def reset_codecs(self, seed: int, /) -> None:
        """As the step."""
        self._step.reset_codecs(seed)

    def measured_peak_bytes(self) -> int:
        """As the step, which does not count as one of these."""
        return self._step.measured_peak_bytes()


def _store(path: Path, content: bytes) -> None:
    """Writes the file beside its place and moves it there, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise

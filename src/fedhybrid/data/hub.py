"""Other people's data sets: one of a Hugging Face hub by its name, through flwr-datasets, or one saved in a folder.

`flwr:NAME` is a data set of the hub; with a folder (`data.root`) that `datasets.save_to_disk` has written, it is read
from there and nothing is asked of any network. Options follow the name as in an address:
`flwr:flwrlabs/femnist?label=character&client=writer_id`; `subset` chooses one of several under one name. The packages
are the optional extra "data". flwr-datasets reports its use to its makers unless FLWR_TELEMETRY_ENABLED is 0; here that
is so unless somebody has set it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from fedhybrid.data.columns import dataset_of
from fedhybrid.data.split import Dataset
from fedhybrid.errors import ConfigError
from fedhybrid.registry import nearest_hint

__all__ = ["HUB_PREFIX", "hub_loader", "load_hub"]

HUB_PREFIX = "flwr:"
_OPTIONS = ("client", "label", "subset")
_TEST_NAMES = ("test", "validation", "valid")


def hub_loader(address: str) -> Callable[[Path | None], Dataset]:
    """The loader of what stands behind "flwr:": a name and perhaps options.

    Raises:
        ConfigError: No name, or an option that is none; all problems at once.

    >>> hub_loader("mnist?lable=y")
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: flwr:mnist has no option 'lable'. Did you mean 'label'? Known: client, label, subset.
    """
    name, _, query = address.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    problems = [] if name else [f"dataset {HUB_PREFIX!r} needs a name behind it, such as {HUB_PREFIX}ylecun/mnist"]
    problems += [
        f"{HUB_PREFIX}{name} has no option {key!r}.{nearest_hint(key, _OPTIONS)} Known: {', '.join(_OPTIONS)}."
        for key in options
        if key not in _OPTIONS
    ]
    if problems:
        raise ConfigError(problems)
    return lambda root: load_hub(name, root, **options)


def load_hub(
    name: str,
    root: Path | None = None,
    *,
    label: str | None = None,
    client: str | None = None,
    subset: str | None = None,
) -> Dataset:
    """A data set of images or of tables with a label column.

    Images are those of the one column of images; otherwise each column of numbers is a feature. Without a test half,
    the last 20 % of each person's samples, or of each class's where the data name no people, become it.

    Args:
        name: Of the data set on the hub; in a folder, only what to call it.
        root: A folder that `datasets.save_to_disk` has written; None asks the hub.
        label: The column of classes; by default "label" and the like, or the only column of classes.
        client: The column that says whose sample each is; by default "client_id" and the like, where there is one.
        subset: Which of several data sets under one name; for the hub only.

    Raises:
        ConfigError: A package is missing, the data cannot be had, or they are not of this form.
    """
    shown = f"{HUB_PREFIX}{name}"
    try:
        halves = _from_hub(name, subset) if root is None else _from_folder(root)
    except ConfigError as error:
        raise ConfigError([f"dataset {shown!r} {problem}" for problem in error.problems]) from error
    return dataset_of(shown, *_train_and_test(shown, halves), label=label, client=client)


def _from_hub(name: str, subset: str | None) -> Mapping[str, Any]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when the package is imported
    package = _need("flwr_datasets")
    halves: dict[str, Any] = {}

    def remember(found: Mapping[str, Any]) -> Mapping[str, Any]:
        halves.update(found)
        return found

    # Which halves there are is known once the data are here; the preprocessor sees them all.
    federated = package.FederatedDataset(
        dataset=name, subset=subset, preprocessor=remember, partitioners={}, shuffle=False
    )
    try:
        federated.load_split("train")
    except Exception as error:  # the network's, the file system's and both packages' own
        if not halves:
            raise ConfigError(
                f"cannot be had from the hub: {type(error).__name__}: {error}; without network, save it elsewhere with "
                "datasets.save_to_disk and give that folder with data.root=DIR"
            ) from error
    return halves


def _from_folder(root: Path) -> Mapping[str, Any]:
    package = _need("datasets")
    if not any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise ConfigError(f"needs data.root to be a folder that datasets.save_to_disk has written; {root} is none")
    try:
        found = package.load_from_disk(str(root))
    except Exception as error:  # whatever reading Arrow files raises
        raise ConfigError(f"cannot be read from {root}: {type(error).__name__}: {error}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _train_and_test(shown: str, halves: Mapping[str, Any]) -> tuple[Any, Any | None]:
    """The training half, and the test half where there is one."""
    train = next(iter(halves.values())) if len(halves) == 1 else halves.get("train")
    if train is None:
        raise ConfigError(f"dataset {shown!r} needs a half called 'train', found {', '.join(halves) or 'none'}")
    test = [halves[name] for name in _TEST_NAMES if name in halves and halves[name] is not train]
    return train, test[0] if test else None


def _need(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"needs the package {module!r}: pip install 'fedhybrid[data]' ({error})") from error

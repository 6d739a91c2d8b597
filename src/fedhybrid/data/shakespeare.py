"""Shakespeare: the next character of 36 plays; each speaking role is a client.

After the task of S. Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, https://arxiv.org/abs/1812.01097:
80 characters in, the next one asked for. Differs: not LEAF's files (`roles.json` gives each role's lines in the order
of the play; roles of equal names in different plays are different clients), and not every position is a sample.

The first 80 % of a role's text are for training: windows and their next characters lie in it as a whole. The rest is
for the test: each character asked for lies in it, so none of them was ever seen in training, while the window before
may reach back. Neighbouring windows say nearly the same, so training takes every 8th and the test every 32nd: about
400,000 and 25,000 of four million. Roles with less than 32 training windows (two small batches) are left out, but their
characters are in the alphabet, which is that of the whole file in the order of code points.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhybrid.data.roles import joined, read_roles, training_length
from fedhybrid.data.split import Dataset, TextSplit
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

__all__ = ["load_shakespeare"]

_WINDOW = 80
_TRAIN_STRIDE, _TEST_STRIDE = 8, 32
_LEAST_TRAIN_WINDOWS = 32


def load_shakespeare(root: Path | None = None) -> Dataset:
    """Shakespeare's roles from below `root`; `natural_ids` number the roles that are long enough, in file order.

    Raises:
        ConfigError: The file is missing or damaged, or no role is long enough.
    """
    path, roles = read_roles("shakespeare", root)
    texts = [text for _, text in roles]
    alphabet = "".join(sorted(set().union(*texts)))
    train, test = _starts([len(text) for text in texts])
    if not any(map(len, train)):
        raise ConfigError(
            f"{path}: no role has the {_LEAST_TRAIN_WINDOWS} training windows of {_WINDOW} characters that a "
            f"client needs; the longest has {max(map(len, texts), default=0):,} characters"
        )
    text = torch.from_numpy(_codes("".join(texts), alphabet))
    halves, ids = [], []
    for each in (train, test):
        starts, owners = joined(each)
        halves.append(
            TextSplit(
                text=text,
                starts=torch.from_numpy(starts),
                labels=text[torch.from_numpy(starts + _WINDOW)].to(torch.int64),
                window=_WINDOW,
            )
        )
        ids.append(owners)
    return Dataset(
        name="shakespeare",
        train=halves[0],
        test=halves[1],
        classes=len(alphabet),
        tokens=len(alphabet),
        natural_ids=ids[0],
        test_ids=ids[1],
    )


def _starts(lengths: list[int]) -> tuple[list[IntArray], list[IntArray]]:
    """Where the training and the test windows of each role that takes part begin in the text of all roles."""
    train: list[IntArray] = []
    test: list[IntArray] = []
    begin = 0
    for length in lengths:
        cut = training_length(length)
        first = np.arange(0, cut - _WINDOW, _TRAIN_STRIDE)
        if len(first) >= _LEAST_TRAIN_WINDOWS:
            train.append(begin + first)
            test.append(begin + np.arange(cut - _WINDOW, length - _WINDOW, _TEST_STRIDE))
        begin += length
    return train, test


def _codes(text: str, alphabet: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The number of each character in the alphabet; one byte each where 256 numbers are enough."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    known = np.frombuffer(alphabet.encode("utf-32-le"), dtype="<u4")
    return np.searchsorted(known, points).astype(np.uint8 if len(alphabet) <= 256 else np.int32)

"""Shakespeare's plays: which of 36 a passage of 64 words is from; each speaking role is a client.

The first 80 % of a role's words are for training, the rest for the test, and no window crosses the cut: no word of a
test passage was read in training. Training takes a window every 16 words and the test one every 32, about 34,000 and
3,800. Roles whose test part is shorter than a window (they speak less than 316 words) are left out. The passages of a
client are all of one class, as a role is in one play.

Words are runs of letters, lower-cased, with the apostrophes and hyphens inside; punctuation is left out (as tokens of
its own it takes a fifth of each window, and naive Bayes gets 37 % of the test passages right instead of 40 %). Known
are the 2,047 words that are most frequent in the training text, of equally frequent ones the first by code points; any
other is token 0. Names of persons and places stay, as in any text that is sorted by its subject. They help, and are not
all there is: without the words that are never written small, naive Bayes gets 29 %; the largest class has 4 %.

The file is that of `shakespeare` (`data/roles.py`); the play is what stands before the first underscore of a role's
name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fedhybrid.data.roles import joined, read_roles, training_length
from fedhybrid.data.split import Dataset, TextSplit
from fedhybrid.errors import ConfigError
from fedhybrid.records import IntArray

__all__ = ["load_plays"]

_WINDOW = 64
_TRAIN_STRIDE, _TEST_STRIDE = 16, 32
_KNOWN_WORDS = 2047
_OTHER = 0
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")  # a letter is what is no sign, digit or underscore


def load_plays(root: Path | None = None) -> Dataset:
    """Passages of plays from below `root`; `natural_ids` number the roles that are long enough, in file order.

    Classes are the plays that these roles are in, by name.

    Raises:
        ConfigError: The file is missing or damaged, a role's name names no play, or no role is long enough.
    """
    path, roles = read_roles("shakespeare-plays", root)
    if unnamed := [name for name, _ in roles if name.find("_") < 1]:
        raise ConfigError(f"{path}: a role's name must be PLAY_ROLE, such as Hamlet_OPHELIA; found {unnamed[0]!r}")
    spoken = [_WORD.findall(text.lower()) for _, text in roles]
    chosen = [number for number, words in enumerate(spoken) if _test_length(words) >= _WINDOW]
    if not chosen:
        raise ConfigError(
            f"{path}: no role has the {_WINDOW} words for the test that a client needs, a fifth of its text; the "
            f"longest has {max(map(len, spoken), default=0):,} words in all"
        )
    texts = [spoken[number] for number in chosen]
    names = [roles[number][0].partition("_")[0] for number in chosen]
    plays = sorted(set(names))
    play_of_role = np.array([plays.index(name) for name in names])
    numbers = _vocabulary(texts)
    text = torch.from_numpy(_codes(texts, numbers))
    halves, ids = [], []
    for each in _starts([len(words) for words in texts]):
        starts, owners = joined(each)
        labels = torch.from_numpy(play_of_role[owners])
        halves.append(TextSplit(text=text, starts=torch.from_numpy(starts), labels=labels, window=_WINDOW))
        ids.append(owners)
    return Dataset(
        name="shakespeare-plays",
        train=halves[0],
        test=halves[1],
        classes=len(plays),
        tokens=len(numbers) + 1,
        natural_ids=ids[0],
        test_ids=ids[1],
    )


def _test_length(words: Sequence[str]) -> int:
    return len(words) - training_length(len(words))


def _vocabulary(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of each known word, the most frequent one of the training text first, from 1."""
    counts = Counter(word for words in texts for word in words[: training_length(len(words))])
    known = sorted(counts, key=lambda word: (-counts[word], word))[:_KNOWN_WORDS]
    return {word: number for number, word in enumerate(known, start=_OTHER + 1)}


def _codes(texts: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """The number of each word of all texts, one after the other; two bytes each."""
    return np.array([numbers.get(word, _OTHER) for words in texts for word in words], dtype=np.int16)


def _starts(lengths: Sequence[int]) -> tuple[list[IntArray], list[IntArray]]:
    """Where the training and the test windows of each role begin in the text of all roles."""
    train: list[IntArray] = []
    test: list[IntArray] = []
    begin = 0
    for length in lengths:
        cut = training_length(length)
        train.append(begin + np.arange(0, cut - _WINDOW + 1, _TRAIN_STRIDE))
        test.append(begin + np.arange(cut, length - _WINDOW + 1, _TEST_STRIDE))
        begin += length
    return train, test

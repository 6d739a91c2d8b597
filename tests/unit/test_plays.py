"""Passages of plays: windows of words, each role's own; and recipes, whose models are told how many words there are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data_files import write_roles
from tests.federation_parts import recipe

import fedhybrid as fh
from fedhybrid.data import Dataset, TextSplit, load_dataset
from fedhybrid.errors import ConfigError
from fedhybrid.experiment.build import build_federation
from fedhybrid.experiment.check import load_config, to_table
from fedhybrid.integrations.flower.brief import brief_of
from fedhybrid.integrations.flower.device.slim import open_device
from fedhybrid.tree import tensors_of

WORDS = [f"w{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]


def write_words(folder: Path, roles: dict[str, list[str]], every: int = 7) -> None:
    """Roles that speak these words, some in a line."""
    spoken = {}
    for role, words in roles.items():
        spoken[role] = {"lines": [" ".join(words[i : i + every]) for i in range(0, len(words), every)]}
    content = {"users": list(roles), "user_data": spoken}
    (folder / "roles.json").write_text(json.dumps(content), encoding="utf-8")


def drawn(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [WORDS[i] for i in np.minimum(rng.geometric(0.02, count), len(WORDS)) - 1]


def plays(root: Path) -> tuple[Dataset, TextSplit, TextSplit]:
    data = load_dataset("shakespeare-plays", root)
    assert isinstance(data.train, TextSplit)
    assert isinstance(data.test, TextSplit)
    return data, data.train, data.test


def test_windows_are_the_roles_words_and_their_plays(tmp_path: Path) -> None:
    roles = {"Two_A": drawn(900, 0), "One_B": drawn(315, 1), "One_C_D": drawn(316, 2), "Two_E": drawn(500, 3)}
    write_words(tmp_path, roles)
    data, train, test = plays(tmp_path)
    assert (data.name, data.input_shape, data.classes) == ("shakespeare-plays", (64,), 2)
    assert data.natural_ids is not None
    assert data.test_ids is not None
    long = ["Two_A", "One_C_D", "Two_E"]
    trained = Counter(word for role in long for word in roles[role][: len(roles[role]) * 80 // 100])
    known = ["other", *sorted(trained, key=lambda word: (-trained[word], word))]
    assert data.tokens == len(known)
    for number, (role, play) in enumerate(zip(long, (1, 0, 1), strict=True)):
        words, cut = roles[role], len(roles[role]) * 80 // 100
        for split, ids, starts in (
            (train, data.natural_ids, range(0, cut - 63, 16)),
            (test, data.test_ids, range(cut, len(words) - 63, 32)),
        ):
            x, y = split.batch(torch.from_numpy(np.flatnonzero(ids == number)))
            spoken = [word if word in known else "other" for word in words]
            assert [[known[i] for i in window] for window in x.tolist()] == [spoken[i : i + 64] for i in starts]
            assert y.tolist() == [play] * len(starts)
            assert len(starts) > 0


def test_no_word_of_a_test_window_was_seen_in_training(tmp_path: Path) -> None:
    write_words(tmp_path, {f"P_{i}": drawn(length, i) for i, length in enumerate((320, 333, 401, 1000))})
    _, train, test = plays(tmp_path)
    seen, asked = ({p for s in half.starts.tolist() for p in range(s, s + 64)} for half in (train, test))
    assert asked
    assert not seen & asked


def test_words_are_lower_cased_letters_without_signs(tmp_path: Path) -> None:
    line = "O'er--the _HILLS_, 'tis e'en well-nigh 3 o'clock; Élan!"
    words = ["o'er", "the", "hills", "tis", "e'en", "well-nigh", "o'clock", "élan"]
    content = {"users": ["P_A"], "user_data": {"P_A": {"lines": [line] * 50}}}
    (tmp_path / "roles.json").write_text(json.dumps(content), encoding="utf-8")
    data, train, _ = plays(tmp_path)
    known = sorted(words)  # all equally frequent
    assert data.tokens == 9
    assert [known[i - 1] for i in train.batch(slice(0, 1))[0][0, :8].tolist()] == words


def test_rare_words_and_those_of_the_test_alone_are_one_token(tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    many = [f"{a}{b}{c}" for a in letters[:5] for b in letters for c in letters][:3000]
    words = [*many, *many[::-1], *many[:2047]]
    cut = 6500 * 80 // 100
    words = [*words[:cut], *["unheard"] * 1300]
    write_words(tmp_path, {"P_A": words})
    data, train, test = plays(tmp_path)
    assert data.tokens == 2048
    counts = Counter(words[:cut])
    least = sorted(counts, key=lambda word: (-counts[word], word))[2046]
    assert train.text.dtype == torch.int16
    assert train.text is test.text
    assert int(train.text.max()) == 2047
    assert words[int((train.text == 2047).nonzero()[0])] == least
    assert not test.batch(slice(None))[0].any()


@pytest.mark.parametrize("name", ["HAMLET", "_HAMLET", ""])
def test_a_role_without_a_play_is_refused(tmp_path: Path, name: str) -> None:
    write_words(tmp_path, {"Hamlet_A": drawn(400, 0), name: drawn(400, 1)})
    with pytest.raises(ConfigError, match=rf"roles.json: a role's name must be PLAY_ROLE, .* found '{name}'"):
        plays(tmp_path)


def test_files_that_are_missing_damaged_or_too_short(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset 'shakespeare-plays': none of roles.json in any of"):
        plays(tmp_path)
    (tmp_path / "roles.json").write_text('{"users": ["P_A"], "user_data": {}}')
    with pytest.raises(ConfigError, match=r"needs JSON of the form .*KeyError: 'P_A'"):
        plays(tmp_path)
    write_words(tmp_path, {"P_A": drawn(100, 0), "P_B": drawn(315, 0)})
    with pytest.raises(ConfigError, match=r"no role has the 64 words .* the longest has 315 words in all"):
        plays(tmp_path)
    (tmp_path / "roles.json").write_text('{"users": [], "user_data": {}}')
    with pytest.raises(ConfigError, match="the longest has 0 words"):
        plays(tmp_path)


def reading(root: Path, **changes: Any) -> dict[str, Any]:
    """Two roles of two plays, read by a small transformer."""
    base = recipe(
        method="fedavg",
        policy="uniform",
        model="bert",
        dataset="shakespeare-plays",
        model_options={"depth": 1, "dim": 16, "heads": 2},
        rounds=1,
        data={"root": str(root), "clients": 2, "partition": "natural"},
        fleet={"clients_per_round": 2},
        train={"batch_size": 4, "steps": 2, "lr": 0.05},
    )
    return base | changes


class TestRecipes:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        write_words(tmp_path, {"One_A": drawn(900, 0), "Two_B": drawn(700, 1)})
        return tmp_path

    @pytest.mark.parametrize(
        ("model", "options"), [("bert", {"dim": 16}), ("char-gpt", {"dim": 16}), ("char-lstm", {"hidden": 8})]
    )
    def test_a_model_has_a_row_for_each_word(self, root: Path, model: str, options: dict[str, Any]) -> None:
        federation = build_federation(load_config(reading(root, model=model, model_options=options)))
        assert isinstance(federation.model.embedding, torch.nn.Embedding)
        assert federation.model.embedding.num_embeddings == federation.dataset.tokens
        x, _ = federation.dataset.test.batch(slice(None))
        assert federation.model(x).shape == (len(x), 2)

    def test_a_run_trains_and_tests(self, root: Path, tmp_path: Path) -> None:
        result = fh.run(reading(root), out=tmp_path / "run")
        assert result.summary.dataset == "shakespeare-plays"
        assert 0 <= result.summary.final_accuracy <= 1

    def test_a_device_of_its_own_makes_the_same_model(self, root: Path, tmp_path: Path) -> None:
        config = load_config(reading(root))
        device = open_device(brief_of(to_table(config)), 0, tmp_path / "home", data_root=root)
        expected = tensors_of(build_federation(config).model)
        assert {name: t.shape for name, t in device.weights.items()} == {name: t.shape for name, t in expected.items()}

    def test_some_classes_of_a_text_still_have_all_its_characters(self, tmp_path: Path) -> None:
        write_roles(tmp_path, {"A": 3000, "B": 3000})
        data = {"root": str(tmp_path), "clients": 2, "classes": [3, 4, 5]}
        options = {"depth": 1, "dim": 16, "heads": 2}
        raw = reading(tmp_path, dataset="shakespeare", model="char-gpt", model_options=options, data=data)
        federation = build_federation(load_config(raw))
        x, y = federation.dataset.train.batch(slice(None))
        assert (federation.dataset.classes, federation.dataset.tokens) == (3, 9)
        assert int(x.max()) == 8
        assert federation.model(x).shape == (len(y), 3)

    def test_how_many_words_is_no_option(self, root: Path) -> None:
        with pytest.raises(ConfigError, match=r"model_options.tokens: model 'bert' has no such option"):
            load_config(reading(root, model_options={"tokens": 9}))

    def test_pre_training_on_a_text_of_other_words_is_refused(self, root: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        write_words(other, {"One_A": [*drawn(900, 5), *["more", "yet"] * 200], "Two_B": drawn(700, 6)})
        pretrain = {"dataset": "shakespeare-plays", "root": str(other), "new_head": True, "steps": 1}
        with pytest.raises(ConfigError, match=r"pretrain.dataset must have as many different tokens as the run's, \d+"):
            build_federation(load_config(reading(root, pretrain=pretrain)))

"""Methods whose clients ask the server in the middle of a task: split learning, in this process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.federation_parts import recipe
from tests.split_method import DEVICE

import fedhybrid as fh
from fedhybrid.devices import load_profile

_SPLIT = "tests.split_method:SplitTraining"
_LAYERS = "tests.split_method:TwoLayers"
_BATCH = 8


def _recipe(**changes: Any) -> dict[str, Any]:
    return recipe(
        model=_LAYERS,
        model_options={},
        method=_SPLIT,
        policy="uniform",
        fleet={"clients_per_round": 4, "tiers": [{"name": "all", "budget": "100%", "device": "raspberry-pi-4"}]},
        train={"batch_size": _BATCH, "steps": 3, "lr": 0.1},
        **changes,
    )


def test_a_cut_model_learns_what_the_whole_one_does(tmp_path: Path) -> None:
    split = fh.run(_recipe(), out=tmp_path / "split")
    whole = fh.run(_recipe() | {"method": "fedavg"}, out=tmp_path / "whole")
    assert [r.cohort for r in split.rounds] == [r.cohort for r in whole.rounds]
    for name, tensor in load_file(tmp_path / "whole/model.safetensors").items():
        other = load_file(tmp_path / "split/model.safetensors")[name]
        torch.testing.assert_close(other, tensor, rtol=0, atol=1e-5)
    for one, other in zip(split.clients, whole.clients, strict=True):
        assert one.client == other.client
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_every_byte_of_the_talk_is_counted_and_takes_its_time(tmp_path: Path) -> None:
    split = fh.run(_recipe(), out=tmp_path / "split")
    whole = fh.run(_recipe() | {"method": "fedavg"}, out=tmp_path / "whole")
    model = load_file(tmp_path / "split/model.safetensors")
    sizes = {name: tensor.numel() * 4 for name, tensor in model.items()}
    asked, answered = 3 * _BATCH * (32 * 4 + 8), 3 * _BATCH * (32 * 4 + 4)
    for one, other in zip(split.clients, whole.clients, strict=True):
        assert one.outcome == "completed"
        assert one.bytes_up == sum(sizes[name] for name in DEVICE) + asked
        assert one.bytes_down == sum(sizes.values()) + answered
        device = load_profile(one.device)
        up, down = one.bytes_up - other.bytes_up, one.bytes_down - other.bytes_down
        longer_s = up / device.uplink_bytes_per_s + down / device.downlink_bytes_per_s
        assert one.virtual_time_s - other.virtual_time_s == pytest.approx(longer_s, rel=1e-6)


def test_several_workers_give_the_same(tmp_path: Path) -> None:
    runs = [fh.run(_recipe(workers=n), out=tmp_path / str(n)) for n in (1, 2)]
    assert runs[0].clients == runs[1].clients
    strip = [[dataclasses.replace(r, wall_time_s=0.0) for r in run.rounds] for run in runs]
    assert strip[0] == strip[1]
    assert (tmp_path / "1/model.safetensors").read_bytes() == (tmp_path / "2/model.safetensors").read_bytes()

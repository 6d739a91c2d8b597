"""What every device profile of `DEVICES` obeys."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fedhybrid.devices import DEVICES, load_profile
from fedhybrid.opwork import OP_KINDS, OpWork


@pytest.mark.parametrize("name", sorted(DEVICES))
class TestEveryDevice:
    def test_loads_under_its_name_with_all_kinds(self, name: str) -> None:
        profile = load_profile(name)
        assert profile.name == name == DEVICES[name].stem
        assert set(profile.kinds) == set(OP_KINDS)
        assert load_profile(DEVICES[name]) == profile

    def test_each_figure_has_a_source(self, name: str) -> None:
        sources = " ".join(load_profile(name).sources)
        for figure in ("memory", "peak.flops_per_s", "peak.bytes_per_s", "op_overhead_s", "uplink"):
            assert figure in sources
        assert "https://" in sources
        assert "ASSUMPTIONS" in DEVICES[name].read_text(encoding="utf-8")

    def test_rates_of_memory_and_links_can_be_looked_up_or_are_called_assumptions(self, name: str) -> None:
        for source in load_profile(name).sources:
            if source.startswith(("memory", "peak.bytes_per_s", "op_overhead_s", "uplink")):
                assert "https://" in source or "http://" in source or "of this project" in source, source

    def test_no_kind_is_faster_than_the_peak(self, name: str) -> None:
        peak = tomllib.loads(DEVICES[name].read_text(encoding="utf-8"))["peak"]
        for rate in load_profile(name).kinds.values():
            assert 0 < rate.flops_per_s <= peak["flops_per_s"]
            assert 0 < rate.bytes_per_s <= peak["bytes_per_s"]

    @pytest.mark.parametrize("kind", OP_KINDS)
    def test_more_work_takes_longer(self, name: str, kind: str) -> None:
        profile = load_profile(name)
        nothing = profile.op_time_s(OpWork(kind=kind, flops=0.0, moved_bytes=0))
        little = profile.op_time_s(OpWork(kind=kind, flops=1e6, moved_bytes=10**6))
        more = profile.op_time_s(OpWork(kind=kind, flops=1e9, moved_bytes=10**9))
        assert nothing == profile.op_overhead_s
        assert nothing < little < more


def test_the_table_lists_every_profile_in_the_folder() -> None:
    folder = {path for path in next(iter(DEVICES.values())).parent.iterdir() if path.suffix == ".toml"}
    assert set(DEVICES.values()) == folder


def test_devices_are_ordered_by_their_processors() -> None:
    work = OpWork(kind="conv", flops=1e9, moved_bytes=10**6)
    order = ["laptop", "phone-high-end", "raspberry-pi-5", "phone-mid-range", "raspberry-pi-4"]
    times = [load_profile(name).op_time_s(work) for name in order]
    assert times == sorted(times)
    assert Path(DEVICES["laptop"]).is_file()

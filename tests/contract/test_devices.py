"""What every device profile of `DEVICES` obeys."""

from __future__ import annotations

import tomllib

import pytest

from fedhybrid.devices import DEVICES, load_profile
from fedhybrid.opwork import OP_KINDS, OpWork

FIGURES = (
    "memory",
    "peak.flops_per_s",
    "peak.bytes_per_s",
    "op_overhead_s",
    "uplink",
    "watts_compute",
    "joules_per_byte_up",
    "joules_per_byte_down",
)


@pytest.mark.parametrize("name", sorted(DEVICES))
class TestEveryDevice:
    def test_loads_under_its_name_with_all_kinds(self, name: str) -> None:
        profile = load_profile(name)
        assert profile.name == name == DEVICES[name].stem
        assert set(profile.kinds) == set(OP_KINDS)
        assert load_profile(DEVICES[name]) == profile

    def test_each_figure_has_a_source(self, name: str) -> None:
        sources = " ".join(load_profile(name).sources)
        for figure in FIGURES:
            assert figure in sources
        assert "https://" in sources
        assert "ASSUMPTIONS" in DEVICES[name].read_text(encoding="utf-8")

    def test_each_source_can_be_looked_up_or_is_called_derived_or_an_assumption(self, name: str) -> None:
        for source in load_profile(name).sources:
            assert any(word in source for word in ("https://", "http://", "of this project", "derived: ")), source
            if source.startswith(("memory", "peak.bytes_per_s", "op_overhead_s", "uplink", "watts", "joules")):
                assert "https://" in source or "http://" in source or "of this project" in source, source

    def test_energy_grows_with_work_and_traffic(self, name: str) -> None:
        profile = load_profile(name)
        assert profile.energy_j(0.0, 0, 0) == 0.0
        for compute_s, bytes_up, bytes_down in ((60.0, 0, 0), (0.0, 10**7, 0), (0.0, 0, 10**7)):
            once, twice = (profile.energy_j(n * compute_s, n * bytes_up, n * bytes_down) for n in (1, 2))
            assert 0 < once < twice == pytest.approx(2 * once)

    def test_energy_is_plausible(self, name: str) -> None:
        """One watt (a board) to a hundred (a desktop); a byte costs more to send than to receive, and microjoules."""
        profile = load_profile(name)
        assert 1.0 <= profile.energy_j(1.0, 0, 0) <= 100.0
        assert 1e-8 < profile.energy_j(0.0, 0, 1) < profile.energy_j(0.0, 1, 0) < 1e-5

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


def test_there_are_at_least_twelve() -> None:
    assert len(DEVICES) >= 12


PHONES = ("phone-entry", "phone-low-end", "phone-mid-range", "phone-high-end", "phone-flagship")


@pytest.mark.parametrize(
    "slow_to_fast",
    [
        PHONES,
        ("raspberry-pi-zero-2", "raspberry-pi-3", "raspberry-pi-4", "phone-mid-range", "raspberry-pi-5"),
        ("phone-high-end", "laptop", "laptop-m1", "desktop"),
        ("jetson-nano", "jetson-orin-nano"),
    ],
)
@pytest.mark.parametrize("kind", ["conv", "matmul"])
def test_devices_are_ordered_by_their_processors(slow_to_fast: tuple[str, ...], kind: str) -> None:
    work = OpWork(kind=kind, flops=1e9, moved_bytes=10**6)
    times = [load_profile(name).op_time_s(work) for name in slow_to_fast]
    assert times == sorted(times, reverse=True)


def test_dearer_phones_have_more_of_everything_and_draw_more() -> None:
    phones = [load_profile(name) for name in PHONES]
    norm = OpWork(kind="norm", flops=1e6, moved_bytes=10**7)
    for figures in (
        [phone.memory_bytes for phone in phones],
        [1 / phone.op_time_s(norm) for phone in phones],
        [1 / phone.op_overhead_s for phone in phones],
        [phone.energy_j(1.0, 0, 0) for phone in phones],
    ):
        assert figures == sorted(figures)

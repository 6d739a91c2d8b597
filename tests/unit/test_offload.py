"""Tensors on disk come back bit for bit, and are not in our memory meanwhile."""

from __future__ import annotations

import gc
import mmap
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedhybrid.errors import ConfigError
from fedhybrid.executor.offload import OffloadFile, slot_bytes
from fedhybrid.graph import allocator_events, peak_of

MIB = 2**20
STATM = Path("/proc/self/statm")


def read_back(file: OffloadFile, offset: int, like: Tensor) -> Tensor:
    return file.read(offset, like.nbytes, like.shape, like.stride(), like.dtype)


def mapped_resident_bytes() -> int:
    """File pages that this process holds in memory."""
    return int(STATM.read_text().split()[2]) * mmap.PAGESIZE


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(0, 5), st.integers(1, 60), st.integers(1, 60)),
    order=st.permutations(range(3)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
    gap=st.integers(0, 9000),
)
def test_any_dense_tensor_comes_back(shape: tuple[int, ...], order: list[int], dtype: torch.dtype, gap: int) -> None:
    x = torch.randn(shape).mul(10).to(dtype).permute(order)
    y = torch.randn(1000)
    with OffloadFile(None, 8 * gap + slot_bytes(x.nbytes) + y.nbytes) as file:
        file.write(8 * gap, x)
        file.write(8 * gap + slot_bytes(x.nbytes), y)
        file.prefetch(8 * gap, x.nbytes)
        for _ in range(2):  # reading takes nothing away
            found = read_back(file, 8 * gap, x)
            assert torch.equal(found, x)
            assert found.stride() == x.stride()
        assert torch.equal(read_back(file, 8 * gap + slot_bytes(x.nbytes), y), y)


def test_a_slot_can_be_written_again(tmp_path: Path) -> None:
    with OffloadFile(tmp_path, MIB) as file:
        for value in range(5):
            x = torch.full((MIB // 4,), float(value))
            file.write(0, x)
            file.prefetch(0, MIB)
            assert torch.equal(read_back(file, 0, x), x)


def test_the_file_has_no_name_and_its_space_comes_back(tmp_path: Path) -> None:
    file = OffloadFile(tmp_path, 8 * MIB)
    file.write(0, torch.zeros(MIB))
    assert list(tmp_path.iterdir()) == []
    file.close()
    file.close()
    with pytest.raises(AssertionError, match="closed"):
        file.write(0, torch.zeros(1))
    forgotten = OffloadFile(tmp_path, MIB)
    closing = forgotten._closing
    del forgotten
    gc.collect()
    assert not closing.alive


@pytest.mark.skipif(not STATM.exists(), reason="the system does not tell what is resident")
def test_what_is_written_or_read_leaves_our_memory(tmp_path: Path) -> None:
    x = torch.randn(4 * MIB)
    with OffloadFile(tmp_path, 4 * x.nbytes) as file:
        before = mapped_resident_bytes()
        for slot in range(4):
            file.write(slot * x.nbytes, x)
        assert mapped_resident_bytes() - before < x.nbytes
        for slot in range(4):
            file.prefetch(slot * x.nbytes, x.nbytes)
            assert torch.equal(read_back(file, slot * x.nbytes, x), x)
        assert mapped_resident_bytes() - before < x.nbytes


def test_nothing_but_the_result_is_allocated(tmp_path: Path) -> None:
    x = torch.randn(64, 128, 32).permute(2, 0, 1)
    with OffloadFile(tmp_path, x.nbytes) as file:
        with allocator_events() as writing:
            file.write(0, x)
        with allocator_events() as reading:
            found = read_back(file, 0, x)
        assert peak_of(writing) == 0
        assert peak_of(reading) == found.nbytes


def test_all_space_exists_from_the_start(tmp_path: Path) -> None:
    file = OffloadFile(tmp_path, 8 * MIB + 1)
    stat = os.fstat(file._file.fileno())
    assert stat.st_size == 8 * MIB + 1
    assert stat.st_blocks * 512 >= 8 * MIB
    file.close()


def test_a_missing_directory_or_a_size_of_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        OffloadFile(tmp_path / "nowhere", 1)
    with pytest.raises(ConfigError, match="at least 1 byte"):
        OffloadFile(tmp_path, 0)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    needed = shutil.disk_usage(tmp_path).free + 10 * 2**40
    with pytest.raises(ConfigError, match=r"needs .* on disk, .* has .* free"):
        OffloadFile(tmp_path, needed)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def largest_file(nbytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_system_that_gives_no_space_is_told(tmp_path: Path) -> None:
    with largest_file(MIB), pytest.raises(ConfigError, match="does not give them"):
        OffloadFile(tmp_path, 2 * MIB)


def test_bytes_outside_of_the_file_are_our_bug(tmp_path: Path) -> None:
    with OffloadFile(tmp_path, 100) as file, pytest.raises(AssertionError, match="outside"):
        file.write(64, torch.zeros(10))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no file system in memory")
def test_the_usual_place_is_not_one_that_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    with OffloadFile(None, 10) as file:
        assert file.directory != Path("/dev/shm")

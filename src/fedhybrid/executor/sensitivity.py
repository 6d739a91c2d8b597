"""How much lossy packs change the gradient: real steps on the example batch, each with a few like tensors packed.

Errors of several packs add up in squares while they are small, so these figures are what plans budget with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.codecs import Codec, CodecState
from fedhybrid.executor.bound import BoundModel, put_back
from fedhybrid.executor.running import Runner
from fedhybrid.graph import batch_tensors
from fedhybrid.planner import LOSSY, Pack, Packable, Problem

__all__ = ["gradient_errors"]

_TOGETHER = 4
_SHARE = 4  # codecs are compared on every fourth sample
_LEAST_ERROR = 1e-6  # nothing lossy is taken for exact because the example happened to be

CodecOf = Callable[[int, str], Codec]


def gradient_errors(
    problem: Problem,
    packable: Packable,
    bound: BoundModel,
    example: Any,
    runner_of: Callable[[Mapping[int, int], CodecOf], Runner],
) -> dict[tuple[int, str], float]:
    """Relative L2 error of the whole gradient by (storage, codec), for every lossy pack of a problem.

    In each step up to four tensors that are made, shaped and read alike (those of neighbouring blocks) are packed by
    one codec, and share the error of the gradient equally, in squares. In the same step all codecs pack the real
    activations, and the error of the gradient is taken to grow as the error of the activation does. Each step keeps to
    the decisions of a small loss-free plan otherwise, so that a device that measures stays near the memory that it has,
    but makes nothing again from what it packs.
    Model and generator are left as they were.

    Args:
        problem: With the packs to look at.
        packable: Makes their codecs.
        bound: The model's tensors.
        example: A batch.
        runner_of: Compiles decisions about the problem on top of a small loss-free plan, with these codecs.
    """
    leaves, _ = batch_tensors(example)
    with put_back([*bound.params, *bound.buffers, *leaves]), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        exact = _gradients(runner_of({}, packable.codec), bound, example, state)
        size = sum(float(g.double().square().sum()) for g in exact)
        found: dict[tuple[int, str], float] = {}
        for together in _groups(problem, packable):
            probes = {
                storage: _Probe(
                    {pack.codec: packable.codec(storage, pack.codec) for pack in packs}, _middle(packs).codec
                )
                for storage, packs in together.items()
            }
            runner = runner_of({s: _middle(packs).option for s, packs in together.items()}, _probing(probes, packable))
            distance = _distance(_gradients(runner, bound, example, state), exact) / len(together)
            error = (distance / max(size, 1e-300)) ** 0.5
            for storage, probe in probes.items():
                errors = {(storage, name): error * ratio for name, ratio in probe.ratios().items()}
                found.update({key: max(e, _LEAST_ERROR) for key, e in errors.items() if math.isfinite(e)})
    return found


def _groups(problem: Problem, packable: Packable) -> list[dict[int, list[Pack]]]:
    """The lossy packs of each storage, of up to `_TOGETHER` storages that are alike."""
    by_storage: dict[int, list[Pack]] = {}
    for pack in problem.packs:
        if pack.codec in LOSSY:
            by_storage.setdefault(pack.storage, []).append(pack)
    alike: dict[Hashable, list[int]] = {}
    for storage in by_storage:
        alike.setdefault(packable.likeness(storage), []).append(storage)
    return [
        {storage: by_storage[storage] for storage in storages[begin : begin + _TOGETHER]}
        for storages in alike.values()
        for begin in range(0, len(storages), _TOGETHER)
    ]


def _middle(packs: Sequence[Pack]) -> Pack:
    """Of the middle size: coarse enough to be seen, fine enough for errors to be proportional.

    What "sparse" loses depends on how many elements are not zero, so it is no yardstick for others.
    """
    ordered = sorted(packs, key=lambda pack: (pack.codec == "sparse", -pack.nbytes))
    return ordered[sum(pack.codec != "sparse" for pack in packs) // 2]


def _probing(probes: Mapping[int, _Probe], packable: Packable) -> CodecOf:
    """The probes for their storages, the ordinary codec for every other."""
    return lambda storage, name: probes.get(storage) or packable.codec(storage, name)


@final
class _Probe:
    """One of several codecs of a tensor, that also sees how far each of them would be off."""

    def __init__(self, codecs: Mapping[str, Codec], chosen: str) -> None:
        self._codecs, self._chosen = codecs, codecs[chosen]
        self._squares: dict[str, float] = {}

    def ratios(self) -> dict[str, float]:
        """Error of each codec on the tensor, the chosen one's being 1."""
        unit = self._squares[self._chosen.name]
        return {name: (square / unit) ** 0.5 if unit else 1.0 for name, square in self._squares.items()}

    @property
    def name(self) -> str:
        """The chosen codec's."""
        return self._chosen.name

    @property
    def lossless(self) -> bool:
        """As the chosen one."""
        return self._chosen.lossless

    def accepts(self, shape: Sequence[int], dtype: torch.dtype) -> bool:
        """As the chosen one."""
        return self._chosen.accepts(shape, dtype)

    def encoded_bytes(self, shape: Sequence[int], dtype: torch.dtype) -> int:
        """As the chosen one."""
        return self._chosen.encoded_bytes(shape, dtype)

    def encode(self, x: Tensor, state: CodecState | None = None) -> Tensor:
        """As the chosen one, after a look at all of them."""
        part = x[:: max(1, len(x) // max(1, len(x) // _SHARE))].clone()
        for name, codec in self._codecs.items():
            back = codec.decode(codec.encode(part), part.shape, part.stride(), part.dtype)
            self._squares[name] = float(back.sub_(part).float().square_().sum())
            del back
        del part
        return self._chosen.encode(x, state)

    def decode(self, code: Tensor, like_shape: Sequence[int], like_stride: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As the chosen one."""
        return self._chosen.decode(code, like_shape, like_stride, dtype)


def _distance(planned: list[Tensor], exact: list[Tensor]) -> float:
    return sum(float((p - e).double().square().sum()) for p, e in zip(planned, exact, strict=True))


def _gradients(runner: Runner, bound: BoundModel, example: Any, state: Tensor) -> list[Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, grad: Tensor, owned: bool) -> None:
        found[name] = grad.clone()

    buffers = [b.clone() for b in bound.buffers]
    torch.set_rng_state(state)
    runner.run(bound, example, keep)
    for buffer, before in zip(bound.buffers, buffers, strict=True):
        buffer.copy_(before)
    return [found[name] for name in sorted(found)]

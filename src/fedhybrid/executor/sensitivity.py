"""How much each lossy pack alone changes the gradient: one real step a tensor, on the example batch.

Errors of several packs add up in squares while they are small, so these figures are what plans budget with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from fedhybrid.codecs import Codec, CodecState
from fedhybrid.executor.bound import BoundModel, put_back
from fedhybrid.executor.running import Runner
from fedhybrid.graph import batch_tensors
from fedhybrid.planner import LOSSY, Pack, Packable, Problem

__all__ = ["gradient_errors"]

_SHARE = 4  # codecs are compared on the first samples, a quarter of a tensor

CodecOf = Callable[[int, str], Codec]


def gradient_errors(
    problem: Problem,
    packable: Packable,
    bound: BoundModel,
    example: Any,
    runner_of: Callable[[Mapping[int, int], CodecOf], Runner],
) -> dict[tuple[int, str], float]:
    """Relative L2 error of the whole gradient by (storage, codec), for every lossy pack of a problem.

    Each storage is packed by one of its codecs in one step, which gives that codec's error; in the same step all its
    codecs pack the real activation, and the error of the gradient is taken to grow as the error of the activation does.
    Each run keeps to the decisions of a small loss-free plan otherwise, so that a device that measures stays near the
    memory that it has. Model and generator are left as they were.

    Args:
        problem: With the packs to look at.
        packable: Makes their codecs.
        bound: The model's tensors.
        example: A batch.
        runner_of: Compiles decisions about the problem on top of a small loss-free plan, with these codecs.
    """
    by_storage: dict[int, list[Pack]] = {}
    for pack in problem.packs:
        if pack.codec in LOSSY:
            by_storage.setdefault(pack.storage, []).append(pack)
    leaves, _ = batch_tensors(example)
    with put_back([*bound.params, *bound.buffers, *leaves]), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        exact = _gradients(runner_of({}, packable.codec), bound, example, state)
        size = sum(float(g.double().square().sum()) for g in exact)
        found: dict[tuple[int, str], float] = {}
        for storage, unsorted in by_storage.items():
            packs = sorted(unsorted, key=lambda pack: -pack.nbytes)
            middle = packs[len(packs) // 2]
            probe = _Probe({pack.codec: packable.codec(storage, pack.codec) for pack in packs}, middle.codec)
            runner = runner_of({storage: middle.option}, probe.codec_of(storage, packable.codec))
            error = (_distance(_gradients(runner, bound, example, state), exact) / max(size, 1e-300)) ** 0.5
            found.update({(storage, name): error * ratio for name, ratio in probe.ratios().items()})
    return found


@final
class _Probe:
    """One of several codecs of a tensor, that also sees how far each of them would be off."""

    def __init__(self, codecs: Mapping[str, Codec], chosen: str) -> None:
        self._codecs, self._chosen = codecs, codecs[chosen]
        self._squares: dict[str, float] = {}

    def codec_of(self, storage: int, otherwise: CodecOf) -> CodecOf:
        """This one for its storage, the ordinary one for every other."""
        return lambda s, name: self if s == storage else otherwise(s, name)

    def ratios(self) -> dict[str, float]:
        """Error of each codec on the tensor, the chosen one's being 1."""
        unit = self._squares[self._chosen.name]
        return {name: (square / unit) ** 0.5 if unit else float(square > 0) for name, square in self._squares.items()}

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
        part = x[: max(1, len(x) // _SHARE)].clone()
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

"""Networks with a memory and exemplars for tests: digits, a narrow CNN, features that mean something."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fedhybrid.engine.runtime import classification_loss
from fedhybrid.executor import SGD
from fedhybrid.methods.memory_bank import Bank
from fedhybrid.models.memory_transformer import MemoryNet, ReaderSizes
from fedhybrid.protocols import Submodel
from tests.federation_parts import small_model, small_split

SIZES = ReaderSizes(dim=16, heads=4, dropout=0.0)


def bank_bytes(counts: Iterable[int], *, input_bytes: int, width: int) -> int:
    """Of so many exemplars of each class: the raw input, a float16 feature and an int64 label each."""
    return sum(counts) * (input_bytes + 2 * width + 8)


def memory_net(*, neighbours: int = 3, sizes: ReaderSizes | None = SIZES, **changes: Any) -> MemoryNet:
    """A narrow CNN on digits with room for 30 exemplars, in test mode; its reader adds something where there is one."""
    given: dict[str, Any] = {"entries": lambda classes: 3 * classes, "neighbours": neighbours, "sizes": sizes}
    x, _ = small_split().batch(torch.arange(4))
    net = MemoryNet(small_model(), x, **(given | changes))
    return net.eval()


def awake(net: MemoryNet, seed: int = 0) -> MemoryNet:
    """With an O that is not zero."""
    assert net.reader is not None
    with torch.no_grad():
        net.reader.out.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(seed))
    return net


def filled(net: MemoryNet, samples: Tensor) -> MemoryNet:
    """With these training samples in its memory."""
    x, y = small_split().batch(samples)
    with torch.no_grad():
        net.memory.features[: len(y)] = net.features(x).half()
    net.memory.labels[: len(y)] = y
    return net


def whole_of(net: MemoryNet) -> Submodel:
    """The run's own step."""
    return Submodel(module=net.train(), loss_fn=classification_loss, optimizer=SGD(lr=0.05))


def bank_of(labels: list[int], *, at: list[int] | None = None, width: int = 8) -> Bank:
    """Exemplars whose inputs are their numbers."""
    count = len(labels)
    generator = torch.Generator().manual_seed(3)
    return Bank(
        inputs=torch.arange(float(count)).view(count, 1, 1, 1).expand(count, 1, 8, 8).clone(),
        features=torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1).half(),
        labels=torch.tensor(labels, dtype=torch.int64),
        at=torch.tensor([-1] * count if at is None else at, dtype=torch.int64),
    )

"""Recurrent classifiers; their bits are those of torch's layers without oneDNN's fused kernels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import CLASSES, VOCABULARY, Case, seeded, texts

__all__ = ["gru", "lstm", "lstm_cell"]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], layers: int, *, both_ways: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 12)
        self.cell = kind(12, 16, layers, batch_first=True, bidirectional=both_ways, dropout=0.1 if layers > 1 else 0.0)
        self.out = nn.Linear(32 if both_ways else 16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.cell(self.embed(tokens))
        scores: Tensor = self.out(states[:, -1])
        return scores


def lstm(side: int) -> Case:
    model = seeded(lambda: Recurrent(nn.LSTM, 1, both_ways=False))
    return Case(model=model, loss_fn=F.cross_entropy, batch=texts(2 * side), unfused=True)


def gru(side: int) -> Case:
    """Two layers with dropout between them, in both directions."""
    model = seeded(lambda: Recurrent(nn.GRU, 2, both_ways=True))
    return Case(model=model, loss_fn=F.cross_entropy, batch=texts(side), unfused=True)


class Cells(nn.Module):
    """A loop over time in Python, as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(VOCABULARY, 12), nn.LSTMCell(12, 16), nn.Linear(16, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        h = c = x.new_zeros(x.shape[0], 16)
        for moment in range(x.shape[1]):
            h, c = self.cell(x[:, moment], (h, c))
        scores: Tensor = self.out(h)
        return scores


def lstm_cell(side: int) -> Case:
    return Case(model=seeded(Cells), loss_fn=F.cross_entropy, batch=texts(side), unfused=True)

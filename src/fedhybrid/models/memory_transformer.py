"""A classifier that reads a memory: the nearest stored features of a query go with it through a small transformer.

Source: the outline of the network of A. Iscen, T. Bird, M. Caron, A. Fathi, C. Schmid, "A Memory Transformer Network
for Incremental Learning", BMVC 2022, https://arxiv.org/abs/2210.04485. RECONSTRUCTED: everything below that outline.

Shapes: b queries, d features of the encoder, k neighbours, t a token's width, n entries of the memory, c classes.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own documentation uses

from fedhybrid.errors import ConfigError
from fedhybrid.models.transformer import dropout_layer
from fedhybrid.models.weights import head_of
from fedhybrid.seeds import derive_seed

__all__ = [
    "EMPTY",
    "InputForm",
    "Memory",
    "MemoryNet",
    "Reader",
    "ReaderSizes",
    "Rows",
    "cosine_scores",
    "nearest",
    "neighbours_of",
    "voted",
]

EMPTY = -1  # label of an entry that holds nothing
_SMALL = 1 / 32  # standard deviation of a new P, for queries of length 1 that of the tokens, and of all embeddings
_SHARP = 2.0  # of the attention at first: so many times torch's initial query and key


@final
@dataclass(frozen=True, kw_only=True)
class ReaderSizes:
    """The transformer over a query and its neighbours.

    Attributes:
        dim: Width of its tokens; 0: that of the features.
        depth: Layers.
        heads: Of the attention; they divide `dim`.
        dropout: Ratio, in training.
        label_tokens: Whether a neighbour's token says its class.
    """

    dim: int = 0
    depth: int = 1
    heads: int = 4
    dropout: float = 0.1
    label_tokens: bool = True


@final
@dataclass(frozen=True, kw_only=True)
class InputForm:
    """What one sample's input looks like; a record, as a tensor would be taken for something that the model stores.

    Attributes:
        shape: Without the batch.
        dtype: Of its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


def cosine_scores(features: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
    """`scale` times the cosine of each of (b, d) with each of (c, d): (b, c)."""
    return scale * F.linear(F.normalize(features, dim=1), F.normalize(rows, dim=1))


def nearest(query: Tensor, features: Tensor, there: Tensor, count: int, own: Tensor | None = None) -> Tensor:
    """Entries of the `count` largest products with each query, exact; those that are not there come last.

    Args:
        query: (b, d).
        features: Of the entries, (n, d), any float type.
        there: Which of them hold something, bool (n,).
        count: At most n.
        own: For each query the entry that is made of its own sample, which is passed over, or -1; int64 (b,).

    Returns:
        int64 (b, count).
    """
    likeness = (query @ features.to(query.dtype).t()).masked_fill(~there, -math.inf)
    if own is not None:
        likeness = likeness.masked_fill(_is_own(own, len(features)), -math.inf)
    return likeness.topk(count, dim=1).indices


def _is_own(own: Tensor, entries: int) -> Tensor:
    """Bool (b, n)."""
    return own[:, None] == torch.arange(entries, device=own.device)


def neighbours_of(chosen: Tensor, there: Tensor, own: Tensor | None = None) -> Tensor:
    """Which of the chosen entries (b, k) are neighbours: they hold something, and not the query's own sample."""
    valid = there[chosen]
    return valid if own is None else valid & (chosen != own[:, None])


def voted(likeness: Tensor, labels: Tensor, valid: Tensor, classes: int, *, temperature: float) -> Tensor:
    """Log of each class's share in a vote of the neighbours, weighted by exp(likeness / temperature): (b, classes).

    Args:
        likeness: Of the neighbours, (b, k).
        labels: Theirs, (b, k).
        valid: Which of them count, (b, k); none: all classes alike.
        classes: How many.
        temperature: Small: the nearest one decides.
    """
    weight = (likeness / temperature).masked_fill(~valid, -math.inf)
    weight = torch.where(valid, torch.exp(weight - weight.amax(dim=1, keepdim=True).clamp_min(-1e30)), 0.0)
    votes = torch.zeros(len(labels), classes, dtype=weight.dtype).scatter_add(1, labels.clamp_min(0), weight)
    return torch.log(votes / votes.sum(dim=1, keepdim=True).clamp_min(1e-12) + 1e-6)


class Memory(nn.Module):
    """The entries that a model reads; an entry's label is `EMPTY` where it holds nothing.

    With inputs it is a client's own: its buffers are not persistent, that is no part of the model as it is stored.

    Attributes:
        features: Normalised, float16 (n, d).
        labels: Class numbers, int64 (n,).
        inputs: What the features are made of, (n, ...); None where only features are kept.
    """

    features: Tensor
    labels: Tensor
    inputs: Tensor | None

    def __init__(self, entries: int, width: int, *, form: InputForm | None = None) -> None:
        super().__init__()
        inputs = None if form is None else torch.zeros(entries, *form.shape, dtype=form.dtype)
        self.register_buffer("features", torch.zeros(entries, width, dtype=torch.float16), persistent=form is None)
        self.register_buffer("labels", torch.full((entries,), EMPTY), persistent=form is None)
        self.register_buffer("inputs", inputs, persistent=form is None)

    @property
    def there(self) -> Tensor:
        """Which entries hold something, bool (n,)."""
        return self.labels != EMPTY


class Rows(nn.Module):
    """What there is of each class: a row of the cosine head and, with label tokens, an embedding for the reader.

    Attributes:
        head: (c, d).
        tokens: (c, t), or None.
    """

    tokens: nn.Parameter | None

    def __init__(self, classes: int, width: int, dim: int | None) -> None:
        super().__init__()
        self.head = nn.Parameter(torch.empty(classes, width).normal_(0.0, _SMALL))
        tokens = None if dim is None else nn.Parameter(torch.empty(classes, dim).normal_(0.0, _SMALL))
        self.register_parameter("tokens", tokens)


class Reader(nn.Module):
    """Reads a query's neighbours: what it adds to the query, before the head compares the sum with its rows.

    Tokens are P q + e_query and P z + e_memory + U[label]; there are no positions, so that the order of the neighbours
    means nothing. The last layer is worked out for the query's token alone. O is zero at first: nothing is added.
    Attention begins as a comparison of tokens, as there are few examples to learn that from. What is added is never
    longer than the query itself (1): else the query is soon forgotten over its neighbours.
    """

    def __init__(self, width: int, sizes: ReaderSizes) -> None:
        super().__init__()
        dim = sizes.dim or width
        self.project = nn.Linear(width, dim)
        self.kinds = nn.Parameter(torch.empty(2, dim).normal_(0.0, _SMALL))
        self.layers = nn.ModuleList(
            _Layer(dim, sizes.heads, sizes.dropout, query_only=number == sizes.depth - 1)
            for number in range(sizes.depth)
        )
        self.out = nn.Linear(dim, width, bias=False)
        nn.init.zeros_(self.out.weight)
        nn.init.normal_(self.project.weight, 0.0, _SMALL)
        nn.init.zeros_(self.project.bias)
        for layer in self.layers:
            cast(_Layer, layer).compare()

    def forward(self, query: Tensor, neighbours: Tensor, valid: Tensor, tokens: Tensor | None = None) -> Tensor:
        """What the neighbours add, (b, d); nothing where there is none.

        Args:
            query: Normalised features, (b, d).
            neighbours: Theirs, (b, k, d).
            valid: Which of them are there, bool (b, k).
            tokens: Embeddings of their labels, (b, k, t).
        """
        memory = self.project(neighbours) + self.kinds[1]
        memory = memory if tokens is None else memory + tokens
        x = torch.cat([(self.project(query) + self.kinds[0]).unsqueeze(1), memory], dim=1)
        seen = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)
        for layer in self.layers:
            x = layer(x, seen)
        added: Tensor = self.out(x[:, 0])
        added = added / added.square().sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()
        return torch.where(valid.any(dim=1, keepdim=True), added, 0.0)


class _Layer(nn.Module):
    """A pre-norm transformer layer over (b, k + 1, t) with a mask of what may be looked at; see `Reader`."""

    def __init__(self, dim: int, heads: int, dropout: float, *, query_only: bool) -> None:
        super().__init__()
        self.heads, self.query_only = heads, query_only
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), dropout_layer(dropout), nn.Linear(2 * dim, dim))
        self.dropout = dropout_layer(dropout)

    def compare(self) -> None:
        """Makes keys what queries are: attention begins with what is like the query."""
        with torch.no_grad():
            self.query.weight.mul_(_SHARP)
            self.key_value.weight[: len(self.query.weight)].copy_(self.query.weight)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        normed = self.norm1(x)
        x, asking = (x[:, :1], normed[:, :1]) if self.query_only else (x, normed)
        x = x + self.dropout(self.out(self._looked(asking, normed, seen)))
        y: Tensor = self.dropout(self.mlp(self.norm2(x)))
        return x + y

    def _looked(self, asking: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        b, tokens, dim = at.shape
        q = self.query(asking).view(b, -1, self.heads, dim // self.heads).transpose(1, 2)
        k, v = self.key_value(at).view(b, tokens, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (dim // self.heads) ** -0.5
        weight = self.dropout(scores.masked_fill(~seen[:, None, None], -math.inf).softmax(dim=-1))
        return (weight @ v).transpose(1, 2).reshape(b, -1, dim)  # type: ignore[no-any-return]


class MemoryNet(nn.Module):
    """The global model: an encoder, a cosine head, and what it does with a memory, which is empty at the server.

    Attributes:
        encoder: Maps inputs to features, (b, d).
        rows: Of all classes, by their numbers.
        scale: Of the cosines; trained.
        reader: None: neighbours are not read.
        memory: Of features alone.
        neighbours: k; 0 is the base head.
        temperature: Of a vote of the neighbours in place of the head; 0: they do not vote.
        form: Of the inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        sample: Tensor,
        *,
        entries: Callable[[int], int],
        neighbours: int = 0,
        sizes: ReaderSizes | None = None,
        temperature: float = 0.0,
        scale: float = 10.0,
    ) -> None:
        """Takes the model apart; it is left as it is.

        Args:
            model: Ends in a linear layer whose outputs are its own.
            sample: Inputs, (b, ...), of which only the form counts.
            entries: Of the memory, from the number of classes.
            neighbours: See the class.
            sizes: Of the reader; None: no reader.
            temperature: See the class.
            scale: To begin with.

        Raises:
            ConfigError: The model ends in something else, or `sizes` do not go together.
        """
        super().__init__()
        self.neighbours, self.temperature = neighbours, temperature
        self.form = InputForm(shape=tuple(sample.shape[1:]), dtype=sample.dtype)
        self.encoder, layer = _encoder_of(model, sample)
        classes, width = layer.out_features, layer.in_features
        dim = None if sizes is None else sizes.dim or width
        if sizes is not None and dim is not None and dim % sizes.heads:
            raise ConfigError(
                f"the memory transformer's width must be a multiple of its {sizes.heads} heads, got {dim}; set dim or "
                "heads in [method_options]"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of(layer.weight))
            self.rows = Rows(classes, width, dim if sizes is not None and sizes.label_tokens else None)
            self.reader = None if sizes is None else Reader(width, sizes)
        with torch.no_grad():
            self.rows.head.copy_(layer.weight)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.memory = Memory(entries(classes), width)
        self.train(model.training)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.rows.head)

    @property
    def width(self) -> int:
        """Of the features."""
        return self.rows.head.shape[1]

    def features(self, x: Tensor) -> Tensor:
        """Normalised, (b, d)."""
        return F.normalize(self.encoder(x), dim=1)

    def base(self, query: Tensor) -> Tensor:
        """Scores without the memory."""
        return cosine_scores(query, self.rows.head, self.scale)

    def chosen(self, query: Tensor, own: Tensor | None = None) -> Tensor:
        """Entries of each query's nearest neighbours, (b, k)."""
        count = min(self.neighbours, len(self.memory.labels))
        return nearest(query, self.memory.features, self.memory.there, count, own)

    def answer(self, query: Tensor, chosen: Tensor) -> Tensor:
        """Scores of queries with these entries as their neighbours."""
        valid, labels = neighbours_of(chosen, self.memory.there), self.memory.labels[chosen]
        near = self.memory.features[chosen].to(query.dtype)
        if self.temperature:
            likeness = (near @ query.unsqueeze(2)).squeeze(2)
            votes = voted(likeness, labels, valid, self.classes, temperature=self.temperature)
            return torch.where(valid.any(dim=1, keepdim=True), votes, self.base(query))
        if self.reader is None:
            return self.base(query)
        tokens = None if self.rows.tokens is None else self.rows.tokens[labels.clamp_min(0)]
        return self.base(query + self.reader(query, near, valid, tokens))

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all classes, (b, c)."""
        query = self.features(x)
        return self.answer(query, self.chosen(query)) if self.neighbours else self.base(query)


def _encoder_of(model: nn.Module, sample: Tensor) -> tuple[nn.Module, nn.Linear]:
    """A copy of a model that ends before its last linear layer, and that layer."""
    path = head_of(model)
    twin, given = copy.deepcopy(model).to("meta"), []
    twin.get_submodule(path).register_forward_hook(lambda _layer, _inputs, output: given.append(output))
    scores = twin(sample.to("meta"))
    if not (len(given) == 1 and scores is given[0] and scores.dim() == 2):
        raise ConfigError(
            f"a memory needs a model that ends in its last linear layer ({path!r}), which makes class scores, (batch, "
            f"classes), of one vector of features for each sample; {type(model).__name__} gives {list(scores.shape)}, "
            "and does not end there or uses that layer for something else as well"
        )
    encoder = copy.deepcopy(model)
    layer = cast(nn.Linear, encoder.get_submodule(path))
    parent, _, name = path.rpartition(".")
    setattr(encoder.get_submodule(parent), name, nn.Identity())
    return encoder, layer


def _seed_of(weight: Tensor) -> int:
    """Follows from the model's own values: the same on every machine of a run."""
    digest = hashlib.blake2b(weight.detach().contiguous().view(torch.uint8).numpy().tobytes(), digest_size=8)
    return derive_seed(int.from_bytes(digest.digest(), "big"), purpose="memory transformer")

"""Steps of a model whose last layer alone learns: by squared loss, and the coding of samples before any learning.

All layers before the last one are frozen and in the mode of testing (no dropout, stored statistics of batch norm), so
that a sample has the same features whenever they are looked at: in training, in the coded rows and in tests.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.fourier import FourierMap
from fedhybrid.models.weights import head_of
from fedhybrid.protocols import Submodel

__all__ = [
    "Coder",
    "check_head",
    "coded_names",
    "drawn_bytes",
    "encoding_step",
    "head_names",
    "head_step",
    "layer_of",
    "one_hot",
    "replaced",
    "squared_loss",
]


def check_head(model: nn.Module, sample: Tensor) -> None:
    """Refuses a model whose scores are not what its last linear layer makes of features, one vector a sample.

    Args:
        model: Not changed, and nothing is computed.
        sample: Inputs, of which only the form counts.

    Raises:
        ConfigError: See above.
    """
    path = head_of(model)
    twin = copy.deepcopy(model).to("meta").eval()
    features = replaced(twin, path, nn.Identity())(sample.to("meta"))
    head = layer_of(model, path)
    if not isinstance(features, Tensor) or tuple(features.shape) != (len(sample), head.in_features):
        found = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ConfigError(
            f"coded training needs a model that ends in one linear layer on features of shape (batch, "
            f"{head.in_features}); without its layer {path!r}, {type(model).__name__} gives {found}"
        )


def head_names(model: nn.Module) -> tuple[str, ...]:
    """The last layer's parameters: its weight, then its bias if it has one."""
    path = head_of(model)
    return tuple(_inside(path, name) for name, _ in layer_of(model, path).named_parameters())


def coded_names(model: nn.Module) -> tuple[str, ...]:
    """Tensors of coding: a step's rows of inputs and of targets, the scale of samples; all rows of both."""
    path = head_of(model)
    return tuple(_inside(path, name) for name in ("rows_x", "rows_y", "scale", "coded_x", "coded_y"))


def drawn_bytes(model: nn.Module) -> int:
    """Bytes of random feature maps, which every device can make from a seed."""
    maps = [module for module in model.modules() if isinstance(module, FourierMap)]
    return sum(buffer.numel() * buffer.element_size() for module in maps for buffer in module.buffers())


def squared_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared distance to one-hot targets: its mean, and each sample's own.

    A sample with a negative label counts for nothing, but in the mean's denominator.

    Args:
        scores: (batch, classes).
        labels: (batch,), int64.
    """
    wrong = (scores - one_hot(labels, scores)) * (labels >= 0).to(scores.dtype).unsqueeze(1)
    losses = 0.5 * wrong.square().sum(dim=1)
    return losses.mean(), losses


def one_hot(labels: Tensor, scores: Tensor) -> Tensor:
    """A one in the column of each label, in the form of `scores`; nothing for a label without a column."""
    columns = torch.arange(scores.shape[1], device=scores.device)
    return (labels.unsqueeze(1) == columns).to(scores.dtype)


def head_step(whole: Submodel) -> Submodel:
    """The last layer trains by squared loss, all else is frozen."""
    module = copy.deepcopy(whole.module).eval()
    head = layer_of(module, head_of(module))
    module.requires_grad_(False)
    head.requires_grad_(True)
    return replace(whole, module=module, loss_fn=squared_loss)


def encoding_step(whole: Submodel, rows: int) -> Submodel:
    """A forward pass that adds its batch, projected at random, to coded rows; see `Coder`."""
    module = copy.deepcopy(whole.module).eval()
    path = head_of(module)
    made = replaced(module, path, Coder(layer_of(module, path), rows)).requires_grad_(False)
    return replace(whole, module=made, loss_fn=_code)


class Coder(nn.Module):
    """Stands in the place of the last layer, and holds the coded rows.

    Attributes:
        rows_x: (rows, features), with one more column of ones' codes where the layer has a bias.
        rows_y: (rows, classes).
        scale: Scalar: what samples are multiplied by, inputs and targets; those with labels of the second half (see
            `_code`) are not.
    """

    rows_x: Tensor
    rows_y: Tensor
    scale: Tensor

    def __init__(self, head: nn.Linear, rows: int) -> None:
        super().__init__()
        self.has_bias = head.bias is not None
        like = head.weight.detach()
        self.register_buffer("rows_x", like.new_zeros(rows, head.in_features + self.has_bias))
        self.register_buffer("rows_y", like.new_zeros(rows, head.out_features))
        self.register_buffer("scale", like.new_ones(()))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The linear layer's input, and the rows."""
        if self.has_bias:
            features = torch.cat([features, features.new_ones(features.shape[0], 1)], dim=1)
        return features, self.rows_x, self.rows_y, self.scale


def _code(output: tuple[Tensor, Tensor, Tensor, Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Adds G [x, y] to the rows, with G drawn anew from N(0, 1).

    Args:
        output: Of a model with a `Coder`.
        labels: (batch,), int64: a class; a class plus the number of classes, where the sample is not to be scaled; or
            below 0, where it is not to be added.

    Returns:
        The mean square of the features, and for each sample their mean square and largest magnitude, (batch, 2).
    """
    features, rows_x, rows_y, scale = output
    classes = rows_y.shape[1]
    factors = torch.where(labels >= classes, torch.ones_like(scale), scale) * (labels >= 0).to(scale.dtype)
    drawn = torch.empty_like(rows_x[:, :1]).expand(-1, features.shape[0]).contiguous().normal_() * factors
    rows_x.addmm_(drawn, features)
    rows_y.addmm_(drawn, one_hot(labels, rows_y) + one_hot(labels - classes, rows_y))
    figures = torch.stack([features.square().mean(dim=1), features.abs().amax(dim=1)], dim=1)
    return figures[:, 0].mean(), figures


def layer_of(model: nn.Module, path: str) -> nn.Linear:
    """The linear layer at that path."""
    layer = model.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    return layer


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def replaced(model: nn.Module, path: str, layer: nn.Module) -> nn.Module:
    """The model with another module at that path, in place; the new one where the path is the model's own."""
    if not path:
        return layer
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
    return model

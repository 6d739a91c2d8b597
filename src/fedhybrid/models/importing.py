"""Pre-trained weights under other people's names: vision transformers as the library `transformers` stores them.

A file that already has a model's own names stays as it is. The head's weights come along where the file has a
classifier; most are for other classes, and a recipe leaves them out (`pretrain.new_head`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fedhybrid.errors import ConfigError
from fedhybrid.models.vit import Vit
from fedhybrid.tree import Tensors

__all__ = ["from_transformers", "own_names"]

_BLOCK = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_ATTENTION = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
_SHORT_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj")  # since transformers 5
_OF_A_BLOCK = {
    "layernorm_before": "norm1",
    "attention.output.dense": "attention.out",
    "attention.o_proj": "attention.out",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.0",
    "mlp.fc1": "mlp.0",
    "output.dense": "mlp.3",
    "mlp.fc2": "mlp.3",
}
_OF_THE_MODEL = {
    "embeddings.patch_embeddings.projection.weight": "patches.weight",
    "embeddings.patch_embeddings.projection.bias": "patches.bias",
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
    "classifier.weight": "head.weight",
    "classifier.bias": "head.bias",
}
_DROPPED = ("pooler.", "embeddings.mask_token")  # parts that classify nothing here


def own_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors by the model's names: converted where they are a vision transformer's of `transformers`.

    Raises:
        ConfigError: As `from_transformers`.
    """
    if isinstance(model, Vit) and any(name.removeprefix("vit.").startswith("embeddings.") for name in tensors):
        return from_transformers(tensors)
    return dict(tensors)


def from_transformers(tensors: Mapping[str, Tensor]) -> Tensors:
    """The state of a `transformers` ViTModel or ViTForImageClassification by the names of `models.vit.Vit`.

    Such a network has biases for query, key and value, layer norms with epsilon 1e-12 where ours have 1e-5, and the
    exact GELU; outputs agree to rounding and that epsilon.

    Args:
        tensors: `model.state_dict()`, or what its model.safetensors holds.

    Raises:
        ConfigError: Names that no such network has; all at once.
    """
    made: Tensors = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix("vit.")
        if name.startswith(_DROPPED):
            continue
        if name in _OF_THE_MODEL:
            made[_OF_THE_MODEL[name]] = tensor
            continue
        match = _BLOCK.fullmatch(name)
        layer, _, kind = match[2].rpartition(".") if match else ("", "", "")
        place = next((names.index(layer) for names in (_ATTENTION, _SHORT_ATTENTION) if layer in names), None)
        if match and place is not None:
            thirds.setdefault(f"blocks.{match[1]}.attention.qkv.{kind}", {})[place] = tensor
        elif match and layer in _OF_A_BLOCK:
            made[f"blocks.{match[1]}.{_OF_A_BLOCK[layer]}.{kind}"] = tensor
        else:
            unknown.append(full_name)
    problems = [f"no vision transformer of transformers has a tensor {name!r}" for name in unknown]
    for name, parts in thirds.items():
        if len(parts) == len(_ATTENTION):
            made[name] = torch.cat([parts[place] for place in range(len(_ATTENTION))])
        else:
            problems.append(f"{name} needs query, key and value, found {len(parts)} of the three")
    if problems:
        raise ConfigError(problems)
    return made

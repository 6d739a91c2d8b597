"""Models of `transformers` from tiny configurations, dropout on; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import CLASSES, VOCABULARY, Case, images, seeded, texts, token_loss

__all__ = ["bert", "convnext_v2", "distilbert", "gpt2", "mobilenet_v2", "mobilevit"]


class Scores(nn.Module):
    """The scores of a model that returns a record."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.inner(x).logits
        return scores


def _case(name: str, batch: Any, loss_fn: Any = F.cross_entropy, smallest_batch: int = 1, **options: Any) -> Case:
    """`name` is the models' prefix; the configuration has the same."""
    reason = "transformers is not installed: pip install 'fedhybrid[hf]'"
    transformers = pytest.importorskip("transformers", reason=reason)
    kind, purpose = name.split(":")
    config = getattr(transformers, f"{kind}Config")(**options)
    model = seeded(lambda: Scores(getattr(transformers, f"{kind}{purpose}")(config).train()))
    return Case(model=model, loss_fn=loss_fn, batch=batch, smallest_batch=smallest_batch)


def bert(side: int) -> Case:
    return _case(
        "Bert:ForSequenceClassification",
        texts(2 * side),
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        max_position_embeddings=2 * side,
        num_labels=CLASSES,
    )


def distilbert(side: int) -> Case:
    return _case(
        "DistilBert:ForSequenceClassification",
        texts(2 * side),
        vocab_size=VOCABULARY,
        dim=24,
        n_layers=2,
        n_heads=3,
        hidden_dim=48,
        max_position_embeddings=2 * side,
        num_labels=CLASSES,
    )


def gpt2(side: int) -> Case:
    return _case(
        "GPT2:LMHeadModel",
        texts(2 * side, each=True),
        token_loss,
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_positions=2 * side,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def mobilevit(side: int) -> Case:
    return _case(
        "MobileViT:ForImageClassification",
        images(2 * side),  # it halves five times and then attends over patches of two by two
        smallest_batch=2,
        image_size=2 * side,
        hidden_sizes=[16, 20, 24],
        neck_hidden_sizes=[8, 8, 12, 16, 20, 24, 32],
        num_attention_heads=2,
        mlp_ratio=2.0,
        expand_ratio=2.0,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        num_labels=CLASSES,
    )


def convnext_v2(side: int) -> Case:
    return _case(
        "ConvNextV2:ForImageClassification",
        images(side),
        patch_size=2,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 2, 1],
        drop_path_rate=0.2,
        image_size=side,
        num_labels=CLASSES,
    )


def mobilenet_v2(side: int) -> Case:
    return _case(
        "MobileNetV2:ForImageClassification",
        images(side),
        smallest_batch=2,
        image_size=side,
        depth_multiplier=0.25,
        classifier_dropout_prob=0.2,
        num_labels=CLASSES,
    )

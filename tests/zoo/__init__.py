"""A zoo of small models that a captured step must train exactly as PyTorch does; `ZOO` is walked by the tests.

`ZOO[name](side)` makes a case for square images of `side` pixels and texts of about twice as many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tests.zoo import convnets, hf, mobile, odd, precisions, recurrent, transformers_small
from tests.zoo.case import Case

__all__ = ["ZOO", "Case"]

ZOO: dict[str, Callable[[int], Case]] = {
    "autocast-loss": precisions.autocast_loss,
    "autocast-model": precisions.autocast_model,
    "bfloat16-images": precisions.bfloat16_images,
    "bfloat16-texts": precisions.bfloat16_texts,
    "convnext": convnets.convnext,
    "densenet": convnets.densenet,
    "dict-batch": odd.dict_batch,
    "encoder": transformers_small.encoder,
    "extra-buffers": odd.extra_buffers,
    "frozen": odd.frozen,
    "gpt": transformers_small.gpt,
    "gru": recurrent.gru,
    "hf-bert": hf.bert,
    "hf-convnext-v2": hf.convnext_v2,
    "hf-distilbert": hf.distilbert,
    "hf-gpt2": hf.gpt2,
    "hf-mobilenet-v2": hf.mobilenet_v2,
    "hf-mobilevit": hf.mobilevit,
    "in-place": odd.in_place,
    "inputs-as-dict": odd.inputs_as_dict,
    "inputs-as-tuple": odd.inputs_as_tuple,
    "lstm": recurrent.lstm,
    "lstm-cell": recurrent.lstm_cell,
    "mlp": convnets.mlp,
    "mobilenet-v2": mobile.mobilenet_v2,
    "mobilenet-v3": mobile.mobilenet_v3,
    "noisy": odd.noisy,
    "parametrized": odd.parametrized,
    "resnet18-batch-norm": partial(convnets.resnet18, norm=convnets.batch_norm),
    "resnet18-group-norm": partial(convnets.resnet18, norm=convnets.group_norm),
    "resnet50-batch-norm": partial(convnets.resnet50, norm=convnets.batch_norm),
    "resnet50-group-norm": partial(convnets.resnet50, norm=convnets.group_norm),
    "shared": odd.shared,
    "shufflenet-v2": mobile.shufflenet_v2,
    "swin": transformers_small.swin,
    "unet": convnets.unet,
    "unused": odd.unused,
    "vgg11": convnets.vgg11,
    "vit": transformers_small.vit,
    "volumes": odd.volumes,
}

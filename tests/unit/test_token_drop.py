"""Vision transformers that drop tokens: how many stay, which, and what that saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedhybrid.errors import ConfigError
from fedhybrid.models import build_model
from fedhybrid.models.importing import from_transformers
from fedhybrid.models.ordered import in_order, parts_of, span_of, tensor_names
from fedhybrid.models.token_drop import TokenDropVit, dropped, kept_tokens, token_counts
from fedhybrid.models.vit import Vit

SMALL = {"depth": 4, "dim": 24, "heads": 3, "patch": 4, "token": "class"}


def vit(shape: tuple[int, ...] = (1, 32, 32), **options: Any) -> nn.Module:
    return build_model("vit", input_shape=shape, classes=7, seed=0, options=SMALL | options)


def dropping(keep_ratio: float = 0.5, *, fuse: bool = True, drop_at: tuple[int, ...] = (0, 2, 3)) -> TokenDropVit:
    return TokenDropVit(vit(), drop_at=drop_at, keep_ratio=keep_ratio, fuse=fuse)


def lengths(model: nn.Module, x: torch.Tensor) -> list[int]:
    """Tokens after the embedding and after each block."""
    found = []
    for part in parts_of(model)[:-1]:
        x = part.run(x)
        found.append(x.shape[1])
    return found


@pytest.mark.parametrize(("tokens", "counts"), [(197, [197, 100, 52, 28]), (65, [65, 34, 19, 11])])
def test_token_counts_of_the_method(tokens: int, counts: list[int]) -> None:
    assert token_counts(tokens, drops=3, keep_ratio=0.5) == counts


def test_the_model_has_as_many() -> None:
    big = build_model(
        "vit",
        input_shape=(3, 224, 224),
        classes=5,
        seed=0,
        options={"depth": 12, "dim": 12, "heads": 3, "patch": 16, "token": "class"},
    )
    model = TokenDropVit(big, drop_at=(3, 6, 9), keep_ratio=0.5, fuse=True)
    assert lengths(model, torch.zeros(1, 3, 224, 224)) == [197] * 4 + [100] * 3 + [52] * 3 + [28] * 3
    x = torch.randn(2, 1, 32, 32)
    assert lengths(dropping(), x) == [65, 34, 34, 19, 11]
    assert lengths(dropping(fuse=False), x) == [65, 33, 33, 17, 9]
    assert lengths(dropping(0.01), x) == [65, 3, 3, 3, 3], "one token and the fused one, of two a half each time"
    assert kept_tokens(21, 0.55) == 11, "0.55 of 20, whatever floats say"


def test_keeping_all_is_the_plain_model_bit_for_bit() -> None:
    plain, x = vit(), torch.randn(5, 1, 32, 32)
    for fuse in (False, True):
        assert torch.equal(dropping(1.0, fuse=fuse)(x), plain(x))
    assert torch.equal(dropping(0.5, drop_at=())(x), plain(x))


def test_sorting_all_tokens_by_score_changes_no_output() -> None:
    """The path that drops, told to keep all: other blocks see the same tokens in another order."""
    model, x = vit(), torch.randn(5, 1, 32, 32)
    assert isinstance(model, Vit)
    parts = parts_of(model)
    t = parts[1].run(parts[0].run(x))
    block = model.blocks[1]
    seen, scores = block.attention.with_first_scores(block.norm1(t))
    t = t + seen
    moved = dropped(t, scores, t.shape[1] - 1, fuse=False)
    assert not torch.equal(moved, t)
    rest = parts[3:]
    finished = [in_order(rest, each + block.mlp(block.norm2(each))) for each in (t, moved)]
    assert (finished[0] - finished[1]).abs().max() < 1e-6
    assert (finished[0] - model(x)).abs().max() < 1e-6


def test_scores_are_the_attention_of_the_class_token() -> None:
    model, t = vit(), torch.randn(3, 9, 24)
    assert isinstance(model, Vit)
    attention = model.blocks[0].attention
    seen, scores = attention.with_first_scores(t)
    assert torch.equal(seen, attention(t))
    reference = nn.MultiheadAttention(24, 3, batch_first=True)
    reference.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.out.weight,
            "out_proj.bias": attention.out.bias,
        }
    )
    expected, weights = reference(t, t, t, need_weights=True, average_attn_weights=True)
    torch.testing.assert_close(scores, weights[:, 0, 1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


def test_the_best_stay_in_order_and_the_rest_is_added_up() -> None:
    t = torch.arange(10.0).view(1, 5, 2)
    scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    after = dropped(t, scores, 2, fuse=True)
    rest = 0.2 * t[0, 3] + 0.1 * t[0, 1]
    torch.testing.assert_close(after, torch.stack([t[0, 0], t[0, 2], t[0, 4], rest])[None])
    assert torch.equal(dropped(t, scores, 2, fuse=False), after[:, :3])


def test_gradients_flow_through_tokens_and_scores() -> None:
    t = torch.randn(2, 7, 4, dtype=torch.float64, requires_grad=True)
    scores = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: dropped(a, b, 2, fuse=True), (t, scores))


def test_parts_and_names_are_those_of_the_plain_model() -> None:
    plain, model = vit(), dropping()
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    parts, x = parts_of(model), torch.randn(2, 1, 32, 32)
    held = [name for part in parts for name in tensor_names(model, part)]
    assert sorted(held) == sorted(name for name, _ in model.named_parameters())
    whole = model(x)
    for cut in range(1, len(parts)):
        first, second = span_of(model, 0, cut), span_of(model, cut, len(parts))
        assert torch.equal(second(first(x)), whole)


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'token = "class"; found token = \'mean\''):
        TokenDropVit(vit(token="mean"), drop_at=(), keep_ratio=0.5, fuse=True)
    with pytest.raises(ConfigError, match="found a Linear"):
        TokenDropVit(nn.Linear(2, 2), drop_at=(), keep_ratio=0.5, fuse=True)
    with pytest.raises(ConfigError, match="blocks 0 to 3 of this model, found 6, 9; give others"):
        TokenDropVit(vit(), drop_at=(3, 6, 9), keep_ratio=0.5, fuse=True)


def block_macs(model: nn.Module, tokens: int, dim: int) -> float:
    """Multiply-adds of all blocks for one image, counted operator by operator."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        in_order(parts_of(model)[1:-1], torch.empty(1, tokens, dim))
    return counter.get_total_flops() / 2


def test_dropping_halves_the_operations_of_vit_b() -> None:
    with torch.device("meta"):
        vits = [
            Vit(input_shape=(3, 224, 224), classes=10, depth=12, dim=768, heads=12, patch=16, token="class")
            for _ in range(2)
        ]
    plain = block_macs(vits[0], 197, 768)
    model = TokenDropVit(vits[1], drop_at=(3, 6, 9), keep_ratio=0.5, fuse=True)
    assert plain == pytest.approx(17.45e9, rel=1e-3)
    assert block_macs(model, 197, 768) == pytest.approx(8.70e9, rel=1e-3)
    assert plain / block_macs(model, 197, 768) == pytest.approx(2.0, abs=0.01)


def test_a_tiny_vit_has_less_than_two_thirds_of_the_operations() -> None:
    sizes = {"depth": 12, "dim": 64, "heads": 4}
    plain = block_macs(vit(**sizes).to("meta"), 65, 64)
    model = TokenDropVit(vit(**sizes), drop_at=(3, 6, 9), keep_ratio=0.5, fuse=True)
    assert plain / block_macs(model.to("meta"), 65, 64) > 1.5


class TestTransformers:
    def test_a_network_of_theirs_gives_the_same_scores(self) -> None:
        theirs = hf_vit()
        model = vit(depth=2).eval()
        model.load_state_dict(from_transformers(theirs.state_dict()))
        x = torch.randn(3, 1, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(model(x), theirs(x).logits, rtol=1e-4, atol=1e-5)

    def test_names_of_published_files_are_known(self) -> None:
        """Files in the hub were written by older versions, whose names differ."""
        theirs = hf_vit().state_dict()
        older = {
            "vit.layers.": "vit.encoder.layer.",
            "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        }
        renamed = {}
        for name, tensor in theirs.items():
            old_name = name
            for new, old in older.items():
                old_name = old_name.replace(new, old)
            renamed[old_name] = tensor
        first, second = from_transformers(theirs), from_transformers(renamed)
        assert first.keys() == second.keys() == dict(vit(depth=2).named_parameters()).keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_other_networks_are_refused(self) -> None:
        theirs = hf_vit().state_dict()
        del theirs[next(name for name in theirs if name.endswith(("k_proj.bias", "key.bias")))]
        theirs["decoder.weight"] = torch.zeros(1)
        with pytest.raises(ConfigError) as caught:
            from_transformers(theirs)
        assert any("'decoder.weight'" in problem for problem in caught.value.problems)
        assert any("qkv.bias needs query, key and value, found 2" in problem for problem in caught.value.problems)


def hf_vit() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=32,
        patch_size=4,
        num_channels=1,
        num_labels=7,
        layer_norm_eps=1e-5,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()

"""Training of quantised graphs: gradients, their scaling, what is saved, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.tiny_parts import OPTIONS, batch, prepared, quantised, step_of, submodel
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.errors import ConfigError
from fedhybrid.methods.tiny import update_memory
from fedhybrid.models import build_model
from fedhybrid.models.quantised import Conv, Mean, QuantisedConv, QuantisedNet, quantise
from fedhybrid.models.quantised.arithmetic import bits_of, unpacked
from fedhybrid.models.quantised.convert import read_network

NAMES = ["cnn", "mobilenet_v2", "resnet20"]


def layers(net: nn.Module) -> list[QuantisedConv]:
    assert isinstance(net, QuantisedNet)
    return [conv for conv in net.convs if isinstance(conv, QuantisedConv)]


def gradients(net: QuantisedNet, count: int = 16) -> dict[str, Tensor]:
    x, y = batch(count)
    names, params = zip(*((n, p) for n, p in net.named_parameters() if p.requires_grad), strict=True)
    return dict(zip(names, torch.autograd.grad(F.cross_entropy(net(x), y), params), strict=True))


class TestScaling:
    """Quantisation-aware scaling on one convolution against the same network in float."""

    def ratios(self, *, qas: bool) -> tuple[Tensor, Tensor, Tensor]:
        """|W| / |g| of each channel in float and in integers, and the weight scales."""
        generator = torch.Generator().manual_seed(0)
        conv = nn.Conv2d(1, 6, 3, padding=1)
        with torch.no_grad():
            spread = torch.logspace(-1.5, 0.5, 6).view(-1, 1, 1, 1)
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * spread)
        model = nn.Sequential(conv, nn.Flatten(), nn.Linear(6 * 32 * 32, 10))
        x, y = batch(16)
        net = quantise(model, x, qas=qas)
        (exact,) = torch.autograd.grad(F.cross_entropy(model(x), y), [conv.weight])
        own = gradients(net)["convs.0.weight"]

        def sizes(w: Tensor) -> Tensor:
            return w.detach().flatten(1).norm(dim=1)

        layer = layers(net)[0]
        return sizes(conv.weight) / sizes(exact), sizes(layer.weight) / sizes(own), layer.weight_scale

    def test_with_it_the_ratio_is_that_of_float(self) -> None:
        exact, own, _ = self.ratios(qas=True)
        assert float((own / exact - 1).abs().max()) < 0.1

    def test_without_it_the_ratio_is_off_by_the_inverse_square_of_the_scale(self) -> None:
        exact, own, scale = self.ratios(qas=False)
        assert float((own * scale.square() / exact - 1).abs().max()) < 0.1
        assert float((own / exact).min()) > 100

    @pytest.mark.parametrize("name", ["cnn", "resnet20"])
    def test_gradients_are_the_float_networks(self, name: str) -> None:
        """Straight-through rounding: the last layers' gradients are, in float units, nearly the folded network's."""
        x, y = batch(32)
        model = build_model(name, input_shape=(1, 32, 32), classes=10, seed=1, options=OPTIONS[name])
        for _ in range(20):
            model(x)
        net = quantise(model.eval(), x)
        folded = read_network(model)
        folded.operations = list(net.graph.operations)
        wanted = [tensor.requires_grad_() for tensor in (*folded.weights[-4:], *folded.biases[-4:])]
        scores = net.head(folded.outputs(x)[-1].flatten(1))
        exact = torch.autograd.grad(F.cross_entropy(scores, y), wanted)
        own = gradients(net, 32)
        count = len(net.convs)
        for n, g_w, g_b in zip(range(max(0, count - 4), count), exact, exact[len(exact) // 2 :], strict=False):
            layer, conv = layers(net)[n], net.graph.convs[n]
            into = net.scales[net.graph.operations[conv.sources[0]].site]
            weight = own[f"convs.{n}.weight"] * layer.weight_scale.view(-1, 1, 1, 1)
            bias = own[f"convs.{n}.bias"] * layer.weight_scale * into
            assert float((weight - g_w).norm() / g_w.norm()) < 0.15, n
            assert float((bias - g_b).norm() / g_b.norm()) < 0.15, n


class TestClamping:
    @pytest.mark.parametrize("scheme", ["full", "k2_w0_w1-2"])
    def test_weights_beyond_the_grid_count_as_its_ends(self, scheme: str) -> None:
        made = submodel(quantised(), scheme).module
        assert isinstance(made, QuantisedNet)
        latent = dict(made.named_parameters())["convs.1." + ("weight" if scheme == "full" else "part")]
        found: list[tuple[Tensor, dict[str, Tensor]]] = []
        for reach in (127.0, 140.0):
            with torch.no_grad():
                signs = torch.where(torch.arange(latent.numel()) % 2 == 0, 1.0, -1.0).view_as(latent)
                latent.copy_(signs * reach)
            found.append((made(batch(16)[0]).detach(), gradients(made)))
        (end, of_end), (beyond, of_beyond) = found
        assert torch.equal(end, beyond)
        assert all(torch.equal(of_beyond[name], gradient) for name, gradient in of_end.items())


class Between(nn.Module):
    """Something between a convolution with as many channels as it has columns, and a classifier."""

    def __init__(self, middle: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 30, 3), nn.Linear(features, 2)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.conv(x)))  # type: ignore[no-any-return]


class TestSaved:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("scheme", ["full", "last-1", "k2_w1", "biases-2", "head"])
    def test_saved_bytes_are_the_models(self, name: str, scheme: str) -> None:
        """What autograd really saves for one sample, against the analytic model; before the cut that is nothing."""
        net = quantised(name)
        count = len(net.convs)
        made = submodel(net, f"k2_w{count - 1}-4" if scheme == "k2_w1" else scheme).module
        assert isinstance(made, QuantisedNet)
        own = {t.data_ptr() for t in (*made.parameters(), *made.buffers())}
        saved: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in own:
                saved[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = made.features(batch(1)[0])
        assert all(tensor.dtype in (torch.int8, torch.uint8) for tensor in saved.values())
        memory = update_memory(net.graph, made.updates)
        assert sum(tensor.nbytes for tensor in saved.values()) == memory.saved_bytes
        assert features.requires_grad is (scheme != "head")
        assert (memory.saved_bytes == 0) is (scheme == "head")

    def test_a_convolution_by_the_papers_formula(self) -> None:
        net = quantised("mobilenet_v2")
        conv = net.graph.convs[-1]
        made = submodel(net, f"k1_w{conv.number}-4").module
        assert isinstance(made, QuantisedNet)
        memory = update_memory(net.graph, made.updates)
        out, height, width = conv.shape
        kept = conv.channels_in // 4
        into = net.graph.operations[conv.sources[0]].shape
        bits = out * height * width + 32 * out + 8 * into[1] * into[2] * kept + 8 * out * kept
        assert memory.total_bytes * 8 == bits

    def test_bits_of_any_count(self) -> None:
        for count in (1, 7, 8, 9, 65):
            mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
            packed = bits_of(mask)
            assert packed.numel() == -(-count // 8)
            assert torch.equal(unpacked(packed, (count,)).bool(), mask)


class TestCapturedStep:
    @pytest.mark.parametrize("scheme", ["full", "k2_w1-4", "head"])
    def test_is_eager_training_bit_for_bit_and_needs_what_is_planned(self, scheme: str) -> None:
        step = step_of(submodel(quantised(), scheme))
        measured = step.measure(repeats=1)
        assert measured.bit_identical
        assert measured.gradient_error == 0.0
        assert measured.peak_bytes == step.plan.peak_bytes

    def test_bytes_fall_with_the_scheme(self) -> None:
        """The peak, and what is resident: frozen weights take one byte each, integers that are trained two."""
        net = quantised("resnet20")
        full, half, head = (prepared(submodel(net, scheme)) for scheme in ("full", "last-9", "head"))
        peaks = [each.keep_all_peak_bytes for each in (full, half, head)]
        assert peaks[0] > 1.3 * peaks[1] > peaks[2] > 0
        elements = sum(conv.part_elements(conv.channels_in) for conv in net.graph.convs)
        integer = prepared(submodel(net, "full", integer=True))
        assert full.resident_bytes - head.resident_bytes == 3 * elements
        assert integer.resident_bytes - head.resident_bytes == elements

    def test_gradients_of_weights_do_not_coexist(self) -> None:
        source = step_of(submodel(quantised("resnet20"), "full")).source
        events = [
            "gradient" if "convolution_backward" in line else "update"
            for line in source.splitlines()
            if "convolution_backward(" in line or line.strip().startswith("update(")
        ]
        assert events.count("gradient") == 19
        waiting = 0
        for event in events:
            waiting = waiting + 1 if event == "gradient" else 0
            assert waiting <= 1, "a second gradient of weights before the first was used"

    def test_integer_weights_stay_integers(self) -> None:
        made = submodel(quantised(), "full", integer=True, lr=0.2)
        step = step_of(made)
        before = layers(made.module)[1].weight.detach().clone()
        for _ in range(3):
            step(*batch(8))
        weight = layers(made.module)[1].weight.detach()
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, weight.round())
        assert float(weight.abs().max()) <= 127
        assert not torch.equal(weight, before)


class TestRefusals:
    def test_one_line_for_each_layer_without_counterpart(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, groups=1, padding_mode="reflect", padding=1),
            nn.Conv2d(1, 4, 3),
            nn.GroupNorm(2, 4),
        )
        with pytest.raises(ConfigError) as found:
            quantise(model, batch(2)[0])
        assert "padded by zeros" in str(found.value)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(3600, 2))
        with pytest.raises(ConfigError, match="1: Sigmoid has no counterpart"):
            quantise(model, batch(2)[0])

    @pytest.mark.parametrize(
        ("middle", "words"),
        [
            (lambda y: torch.add(y, y, alpha=-3).mean((2, 3)), "alpha=-3"),
            (lambda y: y.add(y, alpha=2).mean((2, 3)), "alpha=2"),
            (lambda y: y.mean((2, 3), dtype=torch.float64).float(), "dtype=torch.float64"),
            (lambda y: y.mean((2, 3), True), "must read flat samples.*30, 1, 1"),
            (lambda y: torch.flatten(y, end_dim=1), "end_dim=1"),
            (lambda y: F.pad(y, (0, 0, 0, 0, 1, 1), "constant", 2.0).mean((2, 3)), "pad"),
            (lambda y: (y + y.mean((2, 3), True)).mean((2, 3)), "different shapes"),
        ],
    )
    def test_calls_with_arguments_that_would_change_the_result(
        self, middle: Callable[[Tensor], Tensor], words: str
    ) -> None:
        with pytest.raises(ConfigError, match=words):
            quantise(Between(middle, 30), batch(2)[0])

    def test_a_linear_layer_on_what_is_not_flat(self) -> None:
        """It mixes columns, which a convolution of one pixel would not."""
        layers = (nn.Conv2d(1, 30, 3), nn.Linear(30, 30), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(30, 2))
        with pytest.raises(ConfigError, match=r"1: a linear layer must read flat samples.*30, 30, 30"):
            quantise(nn.Sequential(*layers), batch(2)[0])

    def test_pixels_that_a_mean_keeps_by_position(self) -> None:
        net = quantise(Between(lambda y: torch.flatten(y.mean((2, 3), True), 1), 30), batch(2)[0])
        (mean,) = (op for op in net.graph.operations if isinstance(op, Mean))
        assert mean.shape == (30, 1, 1)

    @pytest.mark.parametrize(("name", "word"), [("vit", "quantised"), ("resnet20", "GroupNorm")])
    def test_models_that_it_does_not_know(self, name: str, word: str) -> None:
        options = {"vit": {"depth": 1, "dim": 12}, "resnet20": {"width": 0.5, "norm": "group"}}[name]
        model = build_model(name, input_shape=(1, 32, 32), classes=3, seed=1, options=options)
        with pytest.raises(ConfigError, match=f"{word}|counterpart"):
            quantise(model, batch(2)[0])

    def test_the_model_is_left_as_it_is(self) -> None:
        model = build_model("cnn", input_shape=(1, 32, 32), classes=3, seed=1, options={"width": 0.25, "norm": "batch"})
        before = copy.deepcopy(model.state_dict())
        net = quantise(model, batch(4)[0])
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert model.training
        assert isinstance(net.graph.operations[1], Conv)

    def test_names_and_shapes_do_not_depend_on_values(self) -> None:
        models = [
            build_model("resnet20", input_shape=(1, 32, 32), classes=3, seed=seed, options={"width": 0.25})
            for seed in (1, 2)
        ]
        nets = [quantise(models[0], batch(4)[0]), quantise(models[1], torch.zeros(4, 1, 32, 32))]
        first, second = ({n: (t.shape, t.dtype) for n, t in net.state_dict().items()} for net in nets)
        assert first == second
        assert nets[0].graph == nets[1].graph

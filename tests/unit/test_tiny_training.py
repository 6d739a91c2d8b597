"""Training under 256 KB: tensors of submodels, integer updates, the grid, and the method's verbs."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from tests.scene_parts import same_tensors
from tests.tiny_parts import batch, quantised, step_of, submodel

from fedhybrid.engine.runtime import classification_loss
from fedhybrid.errors import ConfigError
from fedhybrid.executor import SGD, Adam
from fedhybrid.methods import TinyTraining
from fedhybrid.methods.tiny import (
    FLOAT,
    INTEGER,
    IntegerSteps,
    Scheme,
    WithinGrid,
    for_device,
    parse_scheme,
    sram_bytes,
    submodel_of,
    trained_part,
)
from fedhybrid.models import build_model
from fedhybrid.models.quantised import QuantisedNet
from fedhybrid.protocols import RoundPlan, ServerState, Submodel
from fedhybrid.records import LocalWork, Update
from fedhybrid.tree import Tensors, detached_copy, load_into, tensors_of

SRAM, FLASH = 256 * 1024, 1024 * 1024


def updates_of(net: QuantisedNet, scheme: Scheme | str):  # type: ignore[no-untyped-def]
    convs = net.graph.convs
    found = parse_scheme(scheme, len(convs)) if isinstance(scheme, str) else scheme
    return found.updates([conv.channels_in for conv in convs])


def update_with(weights: Tensors, client: int = 0) -> Update:
    """What a client might send."""
    return Update(
        client=client,
        round_index=0,
        weights=weights,
        num_samples=4,
        samples_seen=8,
        steps=1,
        loss_mean=1.0,
        squared_loss_sum=1.0,
        measured_peak_bytes=1,
    )


@functools.cache
def trained_far() -> QuantisedNet:
    """A network some of whose weights have been trained to beyond the grid; not to be changed."""
    net = copy.deepcopy(quantised("cnn"))
    made = dataclasses.replace(submodel(net, "full"), optimizer=SGD(lr=0.5))  # not the submodel's, which would clamp
    step = step_of(made)
    for _ in range(20):
        step(*batch(8))
    load_into(tensors_of(net), {**tensors_of(net), **tensors_of(made.module)})
    return net


class TestTensors:
    @pytest.mark.parametrize("name", ["cnn", "resnet20", "separable"])
    @pytest.mark.parametrize("scheme", ["full", "k2-part", "biases-1", "head"])
    @pytest.mark.parametrize("integer", [False, True])
    def test_a_submodel_computes_what_the_whole_does(self, name: str, scheme: str, *, integer: bool) -> None:
        net = quantised(name)
        last = len(net.convs) - 1
        made = submodel(net, f"k2_w{last - 1}-4_w{last}-8" if scheme == "k2-part" else scheme, integer=integer).module
        x, _ = batch(4)
        with torch.no_grad():
            assert torch.equal(net(x), made(x))

    @pytest.mark.parametrize("scheme", ["full", "k2_w0_w1-2", "biases-1", "head"])
    def test_so_it_does_after_training_beyond_the_grid(self, scheme: str) -> None:
        """On the client's weights as they are, and on the server's, which are brought back."""
        net, x = trained_far(), batch(4)[0]
        latent = [tensors_of(net)[f"convs.{n}.weight"] for n in range(len(net.convs))]
        assert max(float(w.abs().max()) for w in latent) > 128
        start = detached_copy(tensors_of(quantised("cnn")))
        sent = trained_part(for_device(tensors_of(net), "full"))
        server = copy.deepcopy(net)
        load_into(tensors_of(server), TinyTraining().aggregate(ServerState(weights=start), [update_with(sent)]).weights)
        assert max(float(tensors_of(server)[f"convs.{n}.weight"].abs().max()) for n in range(len(net.convs))) == 127
        with torch.no_grad():
            wanted = net(x)
            assert torch.equal(wanted, server(x))
            for whole in (net, server):
                assert torch.equal(wanted, submodel(whole, scheme).module(x))

    @pytest.mark.parametrize("scheme", ["head", "k1_w1-2"])
    def test_what_a_client_must_not_send_is_left_aside(self, scheme: str) -> None:
        """Names that its task holds and that it does not train: as strange as they are, the server stays as it was."""
        start = detached_copy(tensors_of(quantised("cnn")))
        task = for_device(start, scheme)
        honest = trained_part(task) | {"head.bias": task["head.bias"] + 1}
        strange = {name: tensor * 3 + 1 for name, tensor in task.items() if name not in honest}
        assert {"scales", "convs.0.weight_q", "convs.0.weight_scale"} <= strange.keys()
        masks = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in strange.items()}
        update = dataclasses.replace(update_with(honest | strange), masks=masks)
        server = TinyTraining().aggregate(ServerState(weights=start), [update]).weights
        assert same_tensors(server, start | {"head.bias": start["head.bias"] + 1})

    def test_what_was_trained_comes_back_to_its_place(self) -> None:
        """Everything else stays bit for bit, on the device and at the server."""
        net = quantised("resnet20")
        scheme = "k3_w16-2_w18"
        made = submodel(net, scheme)
        before = detached_copy(tensors_of(made.module))
        step = step_of(made)
        for _ in range(2):
            step(*batch(8))
        after = tensors_of(made.module)
        trained = {name for name, p in made.module.named_parameters() if p.requires_grad}
        assert trained == {f"convs.{n}.bias" for n in (16, 17, 18)} | {
            "convs.16.part",
            "convs.18.weight",
            "head.weight",
            "head.bias",
        }
        for name, tensor in after.items():
            assert torch.equal(tensor, before[name]) is (name not in trained), name
        sent = trained_part(after)
        assert sent.keys() == trained
        start = detached_copy(tensors_of(net))
        server = TinyTraining().aggregate(ServerState(weights=start), [update_with(sent)]).weights
        assert all(tensor.dtype == start[name].dtype for name, tensor in server.items())
        order = net.convs[16].channel_order
        assert isinstance(order, torch.Tensor)
        kept = order[: len(order) // 2]
        mask = torch.zeros_like(start["convs.16.weight"], dtype=torch.bool)
        mask[:, kept] = True
        new, old = server["convs.16.weight"], start["convs.16.weight"]
        assert torch.equal(new[~mask], old[~mask])
        assert not torch.equal(new[mask], old[mask])
        assert sent["convs.16.part"].numel() == mask.sum()
        changed = {name for name in start if not torch.equal(server[name], start[name])}
        assert changed == {"head.weight", "head.bias", "convs.16.weight", "convs.18.weight"} | {
            f"convs.{n}.bias" for n in (16, 17, 18)
        }

    def test_kept_channels_are_those_of_the_largest_weights(self) -> None:
        net = quantised("resnet20")
        made = for_device(tensors_of(net), "k1_w18-4")
        conv = net.graph.convs[18]
        real = tensors_of(net)["convs.18.weight"] * tensors_of(net)["convs.18.weight_scale"].view(-1, 1, 1, 1)
        norms = real.square().sum(dim=(0, 2, 3))
        kept = made["convs.18.kept"]
        others = [n for n in range(conv.channels_in) if n not in kept.tolist()]
        assert len(kept) == conv.channels_in // 4
        assert float(norms[kept].min()) >= 0.98 * float(norms[others].max())  # weights have been rounded since


class TestIntegerSteps:
    RULE = IntegerSteps(base=SGD(lr=1.0), limits=(("w", 127),))

    def test_small_steps_count_on_average(self) -> None:
        param = torch.zeros(4000)
        torch.manual_seed(1)
        for step in range(1, 11):
            grad = torch.full_like(param, -0.03)
            self.RULE.update("w", param, grad, {}, step=step, lr=1.0, owned=False)
            assert torch.equal(param, param.round())
        assert abs(float(param.mean()) - 0.3) < 0.03

    def test_stays_within_its_range(self) -> None:
        param = torch.full((10,), 126.0)
        self.RULE.update("w", param, torch.full((10,), -50.0), {}, step=1, lr=1.0, owned=True)
        assert torch.equal(param, torch.full((10,), 127.0))

    @pytest.mark.parametrize("base", [Adam(lr=0.1), SGD(lr=0.1, momentum=0.9)])
    def test_an_optimizer_with_state_is_refused(self, base: Adam | SGD) -> None:
        with pytest.raises(ConfigError, match="without state"):
            IntegerSteps(base=base, limits=self.RULE.limits)

    def test_other_parameters_are_the_bases(self) -> None:
        param = torch.zeros(3)
        self.RULE.update("head.bias", param, torch.full((3,), -0.25), {}, step=1, lr=1.0, owned=False)
        assert torch.equal(param, torch.full((3,), 0.25))
        assert self.RULE.rule_for("head.bias", (3,)) == SGD(lr=1.0)
        assert self.RULE.rule_for("w", (3,)) == self.RULE


class TestWithinGrid:
    @pytest.mark.parametrize("base", [SGD(lr=0.5), SGD(lr=0.5, momentum=0.9), Adam(lr=5.0)])
    @pytest.mark.parametrize("scheme", ["full", "k2_w1-2"])
    def test_float_weights_never_leave_it(self, base: Adam | SGD, scheme: str) -> None:
        net = quantised("cnn")
        whole = Submodel(module=net, loss_fn=classification_loss, optimizer=base)
        made = submodel_of(whole, scheme, integer=False)
        load_into(tensors_of(made.module), for_device(tensors_of(net), scheme))
        step = step_of(made)
        for _ in range(5):
            step(*batch(8))
        found = tensors_of(made.module)["convs.1.weight" if scheme == "full" else "convs.1.part"]
        assert float(found.abs().max()) == 127
        assert not torch.equal(found, found.round())
        assert float(tensors_of(made.module)["convs.1.bias"].abs().max()) > 127

    def test_steps_inside_are_the_bases(self) -> None:
        rule = WithinGrid(base=SGD(lr=1.0), limits=(("w", 127),))
        found = {name: torch.tensor([126.5, -3.0]) for name in ("w", "b")}
        for name, param in found.items():
            rule.update(name, param, torch.tensor([-1.0, 0.25]), {}, step=1, lr=1.0, owned=False)
        assert found["w"].tolist() == [127.0, -3.25]
        assert found["b"].tolist() == [127.5, -3.25]
        assert rule.rule_for("b", (2,)) == SGD(lr=1.0)
        assert rule.rule_for("w", (2,)) == rule


class TestMethod:
    def test_options(self) -> None:
        with pytest.raises(ConfigError) as found:
            TinyTraining(schemes="full middle", latent="int4", sram_bytes=-1, headroom=0.5)
        assert len(found.value.problems) == 4

    def test_what_counts_no_state_refuses_optimizers_that_hold_some(self) -> None:
        momentum, plain = SGD(lr=0.1, momentum=0.9), SGD(lr=0.1)
        for method in (TinyTraining(latent=INTEGER), TinyTraining(sram_bytes=SRAM)):
            assert method.optimizer(plain) is plain
            with pytest.raises(ConfigError, match="found one that holds momentum_buffer"):
                method.optimizer(momentum)
        with pytest.raises(ConfigError) as found:
            TinyTraining(latent=INTEGER, sram_bytes=SRAM).optimizer(Adam(lr=0.1))
        assert len(found.value.problems) == 2
        assert TinyTraining(flash_bytes=FLASH).optimizer(momentum) is momentum

    def test_menu_is_what_the_limits_hold(self) -> None:
        net = quantised("resnet20")
        whole = TinyTraining().menu(net)
        assert whole == ("full", "last-9", "last-4", "last-2", "last-1", "biases-19", "head")
        limit = sram_bytes(net.graph, updates_of(net, "last-2"), latent=FLOAT)
        assert "last-2" in TinyTraining(sram_bytes=limit).menu(net)
        assert "last-4" not in TinyTraining(sram_bytes=limit).menu(net)
        with pytest.raises(ConfigError, match=r"no update scheme is within the limits.*flash_bytes"):
            TinyTraining(flash_bytes=1000).menu(net)
        with pytest.raises(ConfigError, match="k30"):
            TinyTraining(schemes="k30 head").menu(net)

    def plan(self, submodels: dict[int, str]) -> RoundPlan:
        return RoundPlan(
            round_index=2,
            cohort=tuple(submodels),
            plans=dict.fromkeys(submodels),
            work=LocalWork(epochs=1, batch_size=8, lr=0.1),
            run_seed=3,
            draw=2,
            costs=None,  # type: ignore[arg-type]
            submodels=submodels,
        )

    @pytest.mark.parametrize("latent", [FLOAT, INTEGER])
    def test_each_client_gets_the_tensors_of_its_scheme(self, latent: str) -> None:
        method = TinyTraining(latent=latent)
        server = method.init(tensors_of(quantised("cnn")))
        tasks = method.assign(server, self.plan({0: "full", 1: "k1_w1-4", 2: "full", 3: "head"}))
        assert tasks[0].weights is tasks[2].weights
        for task in tasks:
            made = submodel(quantised("cnn"), task.submodel, integer=latent == INTEGER)
            wanted = {n: (t.shape, t.dtype) for n, t in tensors_of(made.module).items()}
            assert {n: (t.shape, t.dtype) for n, t in task.weights.items()} == wanted

    def test_a_mean_between_two_integers_is_rounded_both_ways(self) -> None:
        method = TinyTraining(latent=INTEGER)
        weights: Tensors = detached_copy(tensors_of(quantised("cnn")))
        weights["convs.1.weight"].fill_(2.25)
        (task,) = method.assign(dataclasses.replace(method.init(weights)), self.plan({0: "full"}))
        sent = task.weights["convs.1.weight"].float()
        assert set(sent.unique().tolist()) == {2.0, 3.0}
        assert abs(float(sent.mean()) - 2.25) < 0.05
        assert same_tensors({"w": weights["convs.1.bias"]}, {"w": server_bias(weights)})

    def test_integers_from_devices_have_a_float_mean(self) -> None:
        whole = detached_copy(tensors_of(quantised("cnn")))
        sent = [trained_part(for_device(whole, "full", integer=True)) for _ in range(2)]
        sent[0]["convs.1.weight"] = sent[0]["convs.1.weight"] + 1
        updates = [update_with(weights, client) for client, weights in enumerate(sent)]
        mean = TinyTraining(latent=INTEGER).aggregate(ServerState(weights=whole), updates).weights
        old = whole["convs.1.weight"]
        assert torch.equal(mean["convs.1.weight"], (old + (old + 1).clamp(max=127)) / 2)

    def test_adapts_with_and_without_scaling(self) -> None:
        model = build_model("cnn", input_shape=(1, 32, 32), classes=10, seed=1, options={"width": 0.25})
        nets = [TinyTraining(qas=qas).adapt(model, batch(4)[0]) for qas in (True, False)]
        assert [net.qas for net in nets if isinstance(net, QuantisedNet)] == [True, False]


def server_bias(weights: Tensors) -> torch.Tensor:
    return weights["convs.1.bias"].round()

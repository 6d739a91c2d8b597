"""A step with a question in its middle: captured, planned, priced, carried elsewhere, and asked exactly once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.step_parts import OPTIMIZERS, small_batch, small_model
from torch import Tensor, nn
from torch.nn import functional as F

from fedhybrid.devices import load_profile
from fedhybrid.errors import FedHybridError
from fedhybrid.executor import PortableStep, PreparedStep, TrainStep, export_program, load_program, prepare_step
from fedhybrid.graph import ASK, answering, asked_loss
from fedhybrid.models.ordered import parts_of, span_of
from fedhybrid.opwork import WAITING, OpWork
from fedhybrid.planner.work import op_work

CUT = 4


def halves(name: str = "resnet20", **options: Any) -> tuple[nn.Module, nn.Module]:
    model = small_model(name, **options)
    cut = min(CUT, len(parts_of(model)) - 1)
    return span_of(model, 0, cut), span_of(model, cut, len(parts_of(model)))


def prepared(half: nn.Module, name: str = "resnet20", optimizer: Any = OPTIMIZERS["sgd"]) -> PreparedStep:
    return prepare_step(half, asked_loss, small_batch(name), optimizer, op_seconds=lambda work: 1e-4)


class Server:
    """Answers with the gradient of the other half, which it does not train; counts how often it is asked."""

    def __init__(self, half: nn.Module) -> None:
        self.half, self.asked = half, 0

    def __call__(self, activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += 1
        seen = activations.clone().requires_grad_()
        with torch.enable_grad():
            losses = F.cross_entropy(self.half(seen), labels, reduction="none")
            (gradient,) = torch.autograd.grad(losses.mean(), seen)
        return gradient, losses.detach()


def test_halves_train_as_the_whole_does() -> None:
    first, second = halves(norm="group")
    model = small_model("resnet20", norm="group")
    x, y = small_batch("resnet20")
    losses = F.cross_entropy(model(x), y, reduction="none")
    losses.mean().backward()
    step = TrainStep(made := prepared(first), made.keep_all())
    with answering(Server(second)):
        found = step(x, y)
    torch.testing.assert_close(found, losses.mean().detach())
    assert step.aux is not None
    torch.testing.assert_close(step.aux, losses.detach())
    own, start = dict(first.named_parameters()), dict(model.named_parameters())
    for name, param in own.items():
        grad = start[name].grad
        assert grad is not None
        torch.testing.assert_close(param, start[name] - 0.05 * grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["keep-all", "recompute", "smallest"])
def test_every_plan_asks_once_and_the_same_question(which: str) -> None:
    first, second = halves(norm="batch")
    made = prepared(first)
    plans = {
        "keep-all": made.keep_all,
        "recompute": lambda: made.smallest(actions=("recompute",)),
        "smallest": made.smallest,
    }
    plan, server = plans[which](), Server(second)
    step = TrainStep(made, plan)
    assert sum("_ask(" in line for line in step.source.splitlines()) == 1
    with answering(server):
        step(*small_batch("resnet20"))
    assert server.asked == 1
    assert (plan.peak_bytes < made.keep_all_peak_bytes) is (which != "keep-all")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_loss_free_plans_are_eager_to_the_last_bit_and_measured_to_the_byte(optimizer: str) -> None:
    made = prepared(halves()[0], optimizer=OPTIMIZERS[optimizer])
    for plan in (made.keep_all(), made.smallest(actions=("recompute",))):
        step = TrainStep(made, plan)
        measured = step.measure(repeats=1)
        assert measured.bit_identical
        assert measured.peak_bytes == plan.peak_bytes
        assert any(float(grad.abs().max()) > 0 for grad in step.gradients().values())


def test_nobody_is_asked_while_a_step_is_measured() -> None:
    first, second = halves()
    server = Server(second)
    with answering(server):
        made = prepared(first)
        step = TrainStep(made, made.keep_all())
        step.measured_peak_bytes()
        step.gradients()
        assert server.asked == 0
        step(*small_batch("resnet20"))
        with answering(None):
            step(*small_batch("resnet20"))
    assert server.asked == 1


def test_without_anybody_a_step_has_a_gradient_and_touches_nothing_else() -> None:
    activations, labels = (
        torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
        torch.zeros(4, dtype=torch.long),
    )
    before = torch.get_rng_state()
    gradient, losses = torch.ops.fedhybrid.ask(activations, labels)
    assert torch.equal(gradient, activations)
    assert losses.tolist() == [0.0] * 4
    assert torch.equal(torch.get_rng_state(), before)


def test_waiting_has_no_price_on_any_device() -> None:
    made = prepared(halves()[0])
    (op,) = [op for op in made.graph.ops if op.target == ASK]
    assert op_work(made.graph, op) == OpWork(WAITING, 0.0, 0)
    assert made.priced(load_profile("raspberry-pi-4").op_time_s).costs.of_op(made.graph, op).seconds == 0.0
    timed = prepare_step(halves()[0], asked_loss, small_batch("resnet20"), OPTIMIZERS["sgd"])
    assert timed.costs.of_op(timed.graph, op).seconds == 0.0
    assert timed.costs.of_op(timed.graph, op).workspace_bytes == 0


def test_a_carried_program_asks_too() -> None:
    first, second = halves(norm="batch")
    twin, made = copy.deepcopy(first), prepared(first)
    plan = made.smallest(actions=("recompute",))
    step = TrainStep(made, plan)
    other = PortableStep(twin, made.optimizer, load_program(export_program(step, plan)))
    servers = [Server(copy.deepcopy(second)) for _ in range(2)]
    for trained, server in zip((step, other), servers, strict=True):
        with answering(server):
            trained(*small_batch("resnet20"))  # type: ignore[operator]
    assert [server.asked for server in servers] == [1, 1]
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])


def test_micro_batches_ask_for_each_part() -> None:
    first, second = halves(norm="group")
    twin = copy.deepcopy(first)
    x, y = small_batch("resnet20")
    for half, parts in ((first, 1), (twin, 2)):
        made = prepare_step(half, asked_loss, (x, y), OPTIMIZERS["sgd"], op_seconds=lambda w: 1e-4, micro_batches=parts)
        server = Server(second)
        with answering(server):
            TrainStep(made, made.keep_all())(x, y)
        assert server.asked == parts
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_an_answer_of_another_form_is_refused() -> None:
    first, _ = halves()
    made = prepared(first)
    step = TrainStep(made, made.keep_all())
    with (
        answering(lambda activations, labels: (activations[:2], labels.float())),
        pytest.raises(FedHybridError, match="the answer's gradient must have the shape"),
    ):
        step(*small_batch("resnet20"))


def test_what_was_answered_may_be_read_again() -> None:
    """A plan may overwrite the gradient in place; the one who answered still has it."""
    first, second = halves()
    made, answers = prepared(first), []
    server = Server(second)

    def ask(activations: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        answer = server(activations, labels)
        answers.append((answer[0], answer[0].clone()))
        return answer

    with answering(ask):
        TrainStep(made, made.smallest())(*small_batch("resnet20"))
    assert torch.equal(*answers[0])

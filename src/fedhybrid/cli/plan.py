# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid plan`: one model, one batch, one budget -> the plan, what it predicts, and what a real step measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["plan"]


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, or package.module:factory.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the model, like width=0.5.")
    ] = None,
    *,
    batch: Annotated[int, typer.Option(help="Samples in one step.")],
    input_text: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of one sample, like 3x32x32.")],
    budget: Annotated[
        str | None, typer.Option(metavar="BYTES", help='What the step may hold: "96 MiB", "1.5 GB" or "40%".')
    ] = None,
    classes: Annotated[int, typer.Option(help="Outputs of the model.")] = 10,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="sgd (momentum 0.9), adam or adamw.")] = "sgd",
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; if not given, 0.05 for sgd, 0.001 for adam and adamw.")
    ] = None,
    actions: Annotated[
        str, typer.Option(metavar="A,B", help="What a plan may do with a tensor besides keeping it.")
    ] = "recompute",
    max_gradient_error: Annotated[
        float, typer.Option(help="Largest relative error of the gradient that a plan may cause; 0 is loss-free.")
    ] = 0.0,
    solver: Annotated[
        str, typer.Option(metavar="NAME", help="auto, or a name from `fedhybrid list solvers`.")
    ] = "auto",
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="How long the solver may search.")] = 5.0,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN.json", help="Take this plan instead of solving for one.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run real steps, planned and eager, and compare.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plan.json and timeline.png there.")] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of torch; if not given, its default.")
    ] = None,
) -> None:
    """Plan one training step of a model inside a byte budget, and with --measure prove it.

    A step holds parameters, buffers, optimizer state and the batch (together: resident), and above them activations,
    gradients and the operators' scratch space. "40%" is the resident bytes plus 40 % of what PyTorch's eager step
    needs above them. The loss is cross-entropy, the batch is random. Without --measure no step is run.

    Examples:
      fedhybrid plan resnet20 --batch 32 --input 3x32x32 --budget 40% --measure
      fedhybrid plan resnet18 norm=group --batch 8 --input 3x32x32 --budget 96MiB
      fedhybrid plan my_nets:make_net --batch 16 --input 1x28x28 --budget 60% --json

    Exit code 3 means that no plan fits; the message names the smallest budget that one fits, and what is in the way.
    """
    from fedhybrid.cli.planning import PlanRequest, carry_out
    from fedhybrid.cli.planview import show

    request = PlanRequest(
        model=model,
        options=tuple(options or ()),
        batch=batch,
        input_text=input_text,
        budget=budget,
        classes=classes,
        optimizer=optimizer,
        lr=lr,
        actions=tuple(name.strip() for name in actions.split(",") if name.strip()),
        max_gradient_error=max_gradient_error,
        solver=solver,
        time_limit_s=time_limit,
        plan_file=plan_file,
        measure=measure,
        threads=threads,
    )
    show(carry_out(request), as_json=as_json, out=out)

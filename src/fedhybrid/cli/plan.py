# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid plan`: one model, one batch, one budget -> the plan, what it predicts, and what real steps say to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.options import (
    ActionsOption,
    BatchOption,
    ClassesOption,
    CodecsOption,
    ErrorOption,
    InputOption,
    JsonOption,
    LrOption,
    ModelArgument,
    OptimizerOption,
    OptionsArgument,
    SolverOption,
    ThreadsOption,
    TimeLimitOption,
    TokensOption,
)

__all__ = ["plan"]


def plan(
    model: ModelArgument,
    options: OptionsArgument = None,
    *,
    batch: BatchOption,
    input_text: InputOption,
    budget: Annotated[
        str | None, typer.Option(metavar="BYTES", help='What the step may hold: "96 MiB", "1.5 GB" or "40%".')
    ] = None,
    classes: ClassesOption = 10,
    tokens: TokensOption = None,
    optimizer: OptimizerOption = "sgd",
    lr: LrOption = None,
    actions: ActionsOption = "",
    max_gradient_error: ErrorOption = 0.0,
    codecs: CodecsOption = "",
    solver: SolverOption = "auto",
    time_limit: TimeLimitOption = 5.0,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN.json", help="Take this plan instead of solving for one.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Run real steps, planned and eager, and compare.")] = False,
    hard_limit: Annotated[
        bool, typer.Option("--hard-limit", help="Run steps in a process that may not hold more than planned (Linux).")
    ] = False,
    margin: Annotated[
        str, typer.Option(metavar="BYTES", help="What --hard-limit grants above the planned peak.")
    ] = "8 MiB",
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write plan.json and timeline.png there.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Plan one training step of a model inside a byte budget, and with --measure prove it.

    A step holds parameters, buffers, optimizer state and the batch (together: resident), and above them activations,
    gradients and the operators' scratch space. "40%" is the resident bytes plus 40 % of what PyTorch's eager step
    needs above them. The loss is cross-entropy, the batch is random. Without --measure no step is run.

    --hard-limit asks the operating system: after one warm step a process of its own goes on with RLIMIT_DATA at what
    it holds, plus what the plan needs above the resident bytes, plus --margin; a second one runs the eager step under
    the same allowance, which it should not survive. Both run with MALLOC_MMAP_THRESHOLD_=65536, so that freed memory
    goes back at once; that makes steps slower, so it is for this proof only. Exit code 1 if the planned step dies.

    Examples:
      fedhybrid plan resnet20 --batch 32 --input 3x32x32 --budget 40% --measure
      fedhybrid plan resnet18 norm=group --batch 8 --input 3x32x32 --budget 96MiB
      fedhybrid plan mobilenet_v2 --batch 32 --input 3x32x32 --budget 30% --hard-limit
      fedhybrid plan my_nets:make_net --batch 16 --input 1x28x28 --budget 60% --json

    Exit code 3 means that no plan fits; the message names the smallest budget that one fits, and what is in the way.
    """
    from fedhybrid.cli.planning import PlanRequest, Search, carry_out
    from fedhybrid.cli.planview import show
    from fedhybrid.cli.subject import Subject

    request = PlanRequest(
        subject=Subject(
            model=model,
            options=tuple(options or ()),
            batch=batch,
            input_text=input_text,
            classes=classes,
            tokens=tokens,
            optimizer=optimizer,
            lr=lr,
            threads=threads,
        ),
        search=Search(
            actions=tuple(name.strip() for name in actions.split(",") if name.strip()),
            max_gradient_error=max_gradient_error,
            codecs=tuple(name.strip() for name in codecs.split(",") if name.strip()),
            solver=solver,
            time_limit_s=time_limit,
        ),
        budget=budget,
        plan_file=plan_file,
        measure=measure,
        margin=margin if hard_limit else None,
    )
    planned = carry_out(request)
    show(planned, as_json=as_json, out=out)
    if planned.hard_limit is not None and not planned.hard_limit.planned.survived:
        raise typer.Exit(1)

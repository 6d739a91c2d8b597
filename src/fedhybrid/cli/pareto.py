# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid pareto`: the trade-off curve of one model, from a roomy budget down to the smallest that a plan fits."""

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

__all__ = ["pareto"]


def pareto(
    model: ModelArgument,
    options: OptionsArgument = None,
    *,
    batch: BatchOption,
    input_text: InputOption,
    budgets: Annotated[
        str, typer.Option(metavar="B,B,...", help='Budgets to plan for; bare numbers are per cent, "96 MiB" works too.')
    ] = "100,80,60,50,40,30,20,10",
    classes: ClassesOption = 10,
    tokens: TokensOption = None,
    optimizer: OptimizerOption = "sgd",
    lr: LrOption = None,
    actions: ActionsOption = "",
    max_gradient_error: ErrorOption = 0.0,
    codecs: CodecsOption = "",
    solver: SolverOption = "auto",
    time_limit: TimeLimitOption = 5.0,
    measure: Annotated[
        bool, typer.Option("--measure", help="Run real steps at every point, and eager in turn.")
    ] = False,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write pareto.csv and pareto.png there.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Draw what a smaller peak costs in time, with the peers beside it.

    The step is captured once and planned for each budget, down to the smallest peak that any plan reaches. A smaller
    budget never shows a larger peak, a larger budget never a slower plan. Peers are what people do by hand: keep
    everything (keep-all), a checkpoint a block (checkpoint-blocks), recompute everything (recompute-all), and PyTorch
    eager. Per cent are of eager's peak above the resident bytes; extra time is predicted, beyond the captured program.

    Examples:
      fedhybrid pareto resnet20 --batch 32 --input 3x32x32 --out curves/resnet20
      fedhybrid pareto mobilenet_v2 width=0.5 --batch 16 --input 3x32x32 --budgets 100,60,40,20 --measure
      fedhybrid pareto vit --batch 8 --input 3x32x32 --json
    """
    from fedhybrid.cli.planning import Search
    from fedhybrid.cli.subject import Subject
    from fedhybrid.cli.tradeoff import CurveRequest, carry_out_curve
    from fedhybrid.cli.tradeview import show_curve

    request = CurveRequest(
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
        budgets=budgets,
        measure=measure,
    )
    show_curve(carry_out_curve(request), as_json=as_json, out=out)

"""Arguments and options that several commands share: what is planned, and how a plan is searched."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "ActionsOption",
    "BatchOption",
    "ClassesOption",
    "CodecsOption",
    "ErrorOption",
    "InputOption",
    "JsonOption",
    "LrOption",
    "ModelArgument",
    "OptimizerOption",
    "OptionsArgument",
    "SolverOption",
    "ThreadsOption",
    "TimeLimitOption",
    "TokensOption",
]

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, or package.module:factory.")]
OptionsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Options of the model, like width=0.5.")
]
BatchOption = Annotated[int, typer.Option(help="Samples in one step.")]
InputOption = Annotated[
    str, typer.Option("--input", metavar="CxHxW", help="Shape of one sample: 3x32x32, 9x128 (signal) or 80 (text).")
]
ClassesOption = Annotated[int, typer.Option(help="Outputs of the model.")]
TokensOption = Annotated[
    int | None, typer.Option(help="Different tokens of a text; if not given, as many as --classes.")
]
OptimizerOption = Annotated[str, typer.Option(metavar="NAME", help="sgd (momentum 0.9), adam or adamw.")]
LrOption = Annotated[
    float | None, typer.Option(help="Learning rate; if not given, 0.05 for sgd, 0.001 for adam and adamw.")
]
ActionsOption = Annotated[
    str,
    typer.Option(
        metavar="A,B", help="What a plan may do with a tensor besides keeping it; if not given, all that is loss-free."
    ),
]
ErrorOption = Annotated[
    float,
    typer.Option(help="Largest relative error of the gradient that a plan may cause; 0 is loss-free, inf sets no cap."),
]
CodecsOption = Annotated[
    str,
    typer.Option(metavar="A,B", help="What --actions encode may choose from; if not given, affine-8, -4 and -2."),
]
SolverOption = Annotated[str, typer.Option(metavar="NAME", help="auto, or a name from `fedhybrid list solvers`.")]
TimeLimitOption = Annotated[float, typer.Option(metavar="SECONDS", help="How long the solver may search.")]
ThreadsOption = Annotated[int | None, typer.Option(metavar="N", help="Threads of torch; if not given, its default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")]

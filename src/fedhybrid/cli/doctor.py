# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid doctor`: says what this machine has, and proves on a tiny model that a plan's prediction holds here."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from fedhybrid.cli.output import notes, print_json, results, stage

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Check that this machine is ready: versions, memory, and one real training step, planned and measured.

    The step is captured, planned for less memory than PyTorch's eager step needs, and run; the peak that the
    allocator reports must be the planned one. Exit code 1 if something is wrong.

    Examples:
      fedhybrid doctor
      fedhybrid doctor --json
    """
    from fedhybrid.cli.checkup import check_machine

    with stage(notes(), "capturing, planning and measuring a tiny model"):
        findings = check_machine()
    healthy = all(finding.ok for finding in findings)
    if as_json:
        rows = {f.name: {"ok": f.ok, "found": f.found} for f in findings}
        print_json({"ok": healthy, "checks": rows})
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else "[red]WRONG[/red]"
            table.add_row(mark, finding.name, finding.found)
        results().print(table)
    if not healthy:
        raise typer.Exit(1)

# ruff: noqa: PLC0415 - torch is imported when the command runs, so that --help answers at once
"""`fedhybrid doctor`: says what this machine has, proves that a plan holds here, and measures a device profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedhybrid.cli.output import notes, print_json, results, stage
from fedhybrid.errors import ConfigError

__all__ = ["doctor"]

_NOT_MEASURED = "Goes into --profile as it is; if not given, that of the profile laptop,"


def doctor(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also measure this machine and write its device profile (TOML).")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads of torch while --profile measures; if not given, 1.")
    ] = None,
    uplink: Annotated[
        float | None, typer.Option("--uplink-bytes-per-s", metavar="B/S", help=f"{_NOT_MEASURED} 4.365e6.")
    ] = None,
    downlink: Annotated[
        float | None, typer.Option("--downlink-bytes-per-s", metavar="B/S", help=f"{_NOT_MEASURED} 9.875e6.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option("--watts-compute", metavar="W", help=f"Above idle. {_NOT_MEASURED} 22.")
    ] = None,
    joules_up: Annotated[
        float | None, typer.Option("--joules-per-byte-up", metavar="J", help=f"{_NOT_MEASURED} 2.296e-6.")
    ] = None,
    joules_down: Annotated[
        float | None, typer.Option("--joules-per-byte-down", metavar="J", help=f"{_NOT_MEASURED} 1.109e-6.")
    ] = None,
) -> None:
    """Check that this machine is ready: versions, memory, and one real training step, planned and measured.

    The step is captured, planned for less memory than PyTorch's eager step needs, and run; the peak that the
    allocator reports must be the planned one. Exit code 1 if something is wrong.

    With --profile FILE it also times real operators of each kind (some seconds) and writes a device profile that
    recipes and fleets can name. Network and energy cannot be measured from inside and come from the flags.

    Examples:
      fedhybrid doctor
      fedhybrid doctor --json
      fedhybrid doctor --profile my-board.toml --uplink-bytes-per-s 2e6 --watts-compute 3.5
    """
    figures = {
        "uplink_bytes_per_s": uplink,
        "downlink_bytes_per_s": downlink,
        "watts_compute": watts,
        "joules_per_byte_up": joules_up,
        "joules_per_byte_down": joules_down,
    }
    if profile is None:
        _refuse_without_profile({**figures, "threads": threads})
    else:
        from fedhybrid.cli.selfprofile import check_request
        from fedhybrid.devices.measuring import Unmeasured

        check_request(profile, Unmeasured(**figures), 1 if threads is None else threads)
    from fedhybrid.cli.checkup import check_machine

    with stage(notes(), "capturing, planning and measuring a tiny model"):
        findings = check_machine()
    healthy = all(finding.ok for finding in findings)
    answer: dict[str, Any] = {"ok": healthy, "checks": {f.name: {"ok": f.ok, "found": f.found} for f in findings}}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark = "[green]ok[/green]" if finding.ok else "[red]WRONG[/red]"
        table.add_row(mark, finding.name, finding.found)
    if not as_json:
        results().print(table)
    if profile is not None:
        from fedhybrid.cli.selfprofile import profile_object, profile_table, write_profile

        measured = write_profile(profile, Unmeasured(**figures), 1 if threads is None else threads)
        answer["profile"] = profile_object(measured)
        if not as_json:
            results().print()
            results().print(profile_table(measured))
        notes().print(f"the profile is in {profile}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(answer)
    if not healthy:
        raise typer.Exit(1)


def _refuse_without_profile(options: dict[str, float | None]) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)} goes with --profile FILE, which is not given")

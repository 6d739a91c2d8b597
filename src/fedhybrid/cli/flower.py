# ruff: noqa: PLC0415 - torch and Flower are imported when the command runs, so that --help answers at once
"""`fedhybrid flower`: the same recipes on Flower, simulated on several machines or deployed on real devices."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from fedhybrid.cli.arguments import parse_assignments
from fedhybrid.cli.output import notes, results
from fedhybrid.cli.runs import check_out, close_run, told
from fedhybrid.errors import ConfigError

__all__ = ["FLOWER_COMMANDS"]

_Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file, like recipes/quickstart.toml.")]
_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the recipe's.")
]
_Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; new, or with --resume begun.")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run in DIR stopped.")]
_Keys = Annotated[Path | None, typer.Option(metavar="DIR", help="The folder that `fedhybrid flower keys` made.")]
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="No encryption, and anybody may join: for closed networks only.")
]


def simulate(
    recipe: _Recipe,
    overrides: _Overrides = None,
    *,
    out: _Out = None,
    resume: _Resume = False,
    cpus_per_client: Annotated[
        float, typer.Option(metavar="N", help="Processors of each of Ray's workers; it decides how many there are.")
    ] = 1.0,
    gpus_per_client: Annotated[float, typer.Option(metavar="N", help="The same of graphics processors.")] = 0.0,
    ray_address: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a running Ray cluster: auto, or HOST:PORT. Else here.")
    ] = None,
) -> None:
    """Run a recipe on Flower's simulation: Ray's workers train, on this machine or on a cluster.

    Cohorts, plans, weights and records are those of `fedhybrid run`. It takes longer to start (some 15 s), and is
    worth it where several machines share the work.

    Examples:
      fedhybrid flower simulate recipes/quickstart.toml --out runs/ray
      fedhybrid flower simulate recipes/quickstart.toml rounds=5 --ray-address auto --out runs/cluster
    """
    settings = parse_assignments(overrides or ())
    out = _required(out)
    _require_flower(simulation=True)
    from fedhybrid import experiment
    from fedhybrid.integrations.flower import simulate as run_simulated

    check_out(out, lambda: experiment.config_toml(recipe, settings))
    with told() as progress:
        result = run_simulated(
            recipe,
            out=out,
            overrides=settings,
            resume=resume,
            progress=progress,
            cpus_per_client=cpus_per_client,
            gpus_per_client=gpus_per_client,
            ray_address=ray_address,
        )
    close_run(out, result.summaries)


def serve(
    recipe: _Recipe,
    overrides: _Overrides = None,
    *,
    out: _Out = None,
    resume: _Resume = False,
    keys: _Keys = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="To listen at; 0.0.0.0 for every address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="To listen at; 0 takes a free one.")] = 9092,
    nodes: Annotated[
        int | None, typer.Option(metavar="N", help="That must have joined before the first round; else a cohort.")
    ] = None,
    wait_s: Annotated[float, typer.Option("--wait-s", metavar="S", help="How long they may take.")] = 600.0,
    variant: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Of a recipe that compares several, the one to run.")
    ] = None,
    insecure: _Insecure = False,
) -> None:
    """Run a recipe on real devices: starts Flower's SuperLink, waits for nodes to join, trains with them.

    Each node says what memory it has, gets a plan for that, and trains on its share of the data (or on its own). The
    clock is real. A node that is lost costs its update; one that joins later takes part from then on. Stopped at any
    moment, the run goes on with --resume, and nodes that are still there come back.

    Examples:
      fedhybrid flower keys keys --host 192.168.1.5 --nodes pi-1,pi-2,pi-3
      fedhybrid flower serve RECIPE --variant fedhybrid --keys keys --host 0.0.0.0 --nodes 3 --out runs/pis
    """
    settings = parse_assignments(overrides or ())
    out = _required(out)
    _require_flower()
    from fedhybrid import experiment
    from fedhybrid.integrations.flower import serve as run_deployed

    if keys is None and not insecure:
        raise ConfigError("--keys DIR is missing (`fedhybrid flower keys DIR` makes them); or say --insecure")
    check_out(out, lambda: experiment.config_toml(recipe, settings))
    with told() as progress:
        result = run_deployed(
            recipe,
            out=out,
            overrides=settings,
            resume=resume,
            progress=progress,
            keys=keys,
            host=host,
            port=port,
            nodes=nodes,
            within_s=wait_s,
            variant=variant,
            insecure=insecure,
            on_news=_say,
        )
    close_run(out, result.summaries)


def join(
    server: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of `fedhybrid flower serve`.")],
    *,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of this node; if not given, the host's.")] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="ca.crt of the server's keys.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="This node's private key, nodes/NAME.key.")] = None,
    home: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For programs and state; ~/.local/share/fedhybrid/NAME if not given."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="B", help="For training: 96MiB or 40%. If not given, measured and predicted.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="A device of `fedhybrid list devices` or a TOML. Else measured.")
    ] = None,
    client: Annotated[
        int | None, typer.Option(metavar="N", help="Whose share of the data it holds. Else the server says.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the data set here.")] = None,
    own_data: Annotated[
        bool, typer.Option("--own-data", help="All training samples in it are this device's own; nothing is dealt out.")
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Trust this package.module:factory or flwr: data set if the server names it."
        ),
    ] = None,
    hard_limit: Annotated[
        bool, typer.Option("--hard-limit", help="Let the system hold this program to its budget (RLIMIT_DATA, Linux).")
    ] = False,
    patience_s: Annotated[
        float | None, typer.Option("--patience-s", metavar="S", help="To try to reach the server; else for ever.")
    ] = None,
    insecure: _Insecure = False,
) -> None:
    """Make this machine a node: one slim process that stays, joins the server's recipe and trains inside its budget.

    The server sends the recipe and, with each task, a plan; the data stay here. The program takes some 300 MB beside
    training (torch alone is 220 MB). It comes back by itself after a restart of the server. End it with Ctrl-C.

    Examples:
      fedhybrid flower join 192.168.1.5:9092 --name pi-1 --ca ca.crt --key pi-1.key --budget 96MiB
      fedhybrid flower join 127.0.0.1:9092 --name here --insecure --device raspberry-pi-4
    """
    _require_flower()
    from fedhybrid.integrations.flower import Endpoint
    from fedhybrid.integrations.flower import join as run_node
    from fedhybrid.integrations.flower.device.flags import flag_problems

    name = platform.node() or "node" if name is None else name
    home = home or Path.home() / ".local/share/fedhybrid" / name
    problems = []
    if insecure and (ca is not None or key is not None):
        problems.append("--ca and --key are for a secure connection, --insecure is for none; leave one of them out")
    if not insecure and key is None:
        problems.append("--key FILE is missing (the server's `fedhybrid flower keys` makes it); or say --insecure")
    try:
        endpoint = Endpoint(address=server, ca_file=None if insecure else ca, insecure=insecure)
    except ConfigError as error:
        problems += error.problems
    problems += flag_problems(
        name=name,
        home=home,
        ca_file=ca,
        key_file=key,
        budget=budget,
        device=device,
        client=client,
        data_root=data,
        hard_limit=hard_limit,
        patience_s=patience_s,
    )
    if problems:
        raise ConfigError(problems)
    try:
        run_node(
            endpoint,
            home=home,
            name=name,
            key_file=key,
            budget=budget,
            device=device,
            client=client,
            data_root=data,
            own_data=own_data,
            allow=frozenset(allow or ()),
            hard_limit=hard_limit,
            patience_s=patience_s,
            on_news=_say,
        )
    except KeyboardInterrupt:
        _say("stopped")


def keys(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Made if it is not there; nothing in it is overwritten.")
    ],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Name or IP address by which nodes reach the server; again for more."),
    ] = None,
    nodes: Annotated[str, typer.Option(metavar="NAMES", help="Names with commas between them, or how many.")] = "",
    days: Annotated[int, typer.Option(metavar="N", help="How long the certificates hold.")] = 365,
) -> None:
    """Make the keys of a deployment: an authority, the server's certificate, a key pair for each node.

    Give each node its own nodes/NAME.key and ca.crt, and nothing else; keep the rest with the server. Called again, it
    adds nodes; a server that runs lets them in.

    Examples:
      fedhybrid flower keys keys --host 192.168.1.5 --nodes pi-1,pi-2,pi-3
      fedhybrid flower keys keys --nodes pi-4
    """
    _require_flower()
    from fedhybrid.integrations.flower import make_keys

    names = [name.strip() for name in nodes.split(",") if name.strip()]
    made = make_keys(
        folder,
        hosts=host or (),
        nodes=int(names[0]) if len(names) == 1 and names[0].isdecimal() else names,
        days=days,
    )
    results().print(
        f"server: {made.server_certificate}, for nodes: {made.ca_certificate}", markup=False, soft_wrap=True
    )
    for node in made.node_names:
        results().print(f"node {node}: {made.node_key(node)}", markup=False, highlight=False, soft_wrap=True)


FLOWER_COMMANDS: dict[str, Callable[..., None]] = {
    "simulate": simulate,
    "serve": serve,
    "join": join,
    "keys": keys,
}


def _required(out: Path | None) -> Path:
    if out is None:
        raise ConfigError("--out DIR is missing; give a folder for the run, for example --out runs/first")
    return out


def _require_flower(*, simulation: bool = False) -> None:
    from fedhybrid.integrations.flower.version import require_flower

    require_flower(simulation=simulation)


def _say(news: str) -> None:
    notes().print(news, markup=False, highlight=False, soft_wrap=True)

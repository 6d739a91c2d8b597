"""Portable programs: one compiled plan as bytes, made by a process that captures and run by one that does not.

The form is safetensors: the tensors are the program's constants; a JSON header holds the generated text, what its names
stand for (as data: operators by name, rows of our own tables, never code), the plan, and what the program must meet.

Who loads a program executes text. So the text must have the form that `lower` gives it, which is checked on its syntax
tree before anything runs: assignments of calls, `del`, one `return`; calls of names in the table alone, with literals
and variables. All that such a text can do is call torch's operators; that is more than a stranger should be given all
the same. Load only what this device has made itself: `integrations.flower.programs` signs the files of its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.utils._pytree as pytree
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedhybrid.codecs import CODECS
from fedhybrid.errors import ConfigError
from fedhybrid.executor.bound import Layouts
from fedhybrid.executor.naming import Constant, Disk, Function, Literal, Meaning, Packer, assemble
from fedhybrid.executor.program import AuxLayout, ProgramRunner
from fedhybrid.executor.texts import checked_code
from fedhybrid.graph import BatchSpec
from fedhybrid.planner import Plan, Update

if TYPE_CHECKING:
    from fedhybrid.executor.prepared import PreparedStep
    from fedhybrid.executor.step import TrainStep

__all__ = ["PortableProgram", "export_program", "load_program"]

_VERSION = 1
_KEY = "fedhybrid-program"
_PREFIX_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class PortableProgram:
    """A loaded program.

    Attributes:
        plan: That it follows.
        fingerprint: Of the graph.
        runner: Runs it.
        layouts: Of the model's parameters and buffers.
        trained: Names of the parameters that it updates, in the model's order.
        optimizer: `repr` of the optimizer that it was measured with.
        measured_peak_bytes: The allocator's peak of one real step where it was made, resident bytes included; None
            where it was not run there.
        threads: Intra-op threads of that step.
    """

    plan: Plan
    fingerprint: str
    runner: ProgramRunner
    layouts: Layouts
    trained: tuple[str, ...]
    optimizer: str
    measured_peak_bytes: int | None
    threads: int


def export_program(step: TrainStep, plan: Plan, *, measure: bool = True) -> bytes:
    """The program of a plan of this step; the step keeps the plan that it has.

    Args:
        step: Captured.
        plan: Of its graph.
        measure: Runs one real step, which takes the memory that the plan needs.

    Raises:
        ConfigError: The step runs in the eager mode, or its program has something in it that data cannot say.
        PlanMismatchError: The plan was made for another graph.
        InfeasibleBudgetError: On this machine its peak is above its own budget.
    """
    if step.mode != "program":
        raise ConfigError("a step in the eager mode has no program that could be carried elsewhere; capture the model")
    prepared = cast("PreparedStep", step.prepared)  # of the mode "program"
    before = step.plan
    step.use_plan(plan)
    try:
        runner: ProgramRunner = step.compiled(plan)
        constants: dict[str, Tensor] = {}
        told = _table_as_json(runner.program.table, prepared, constants)
        header = {
            "version": _VERSION,
            "torch": torch.__version__,
            "fingerprint": prepared.fingerprint,
            "plan": plan.to_json(),
            "source": runner.source,
            "table": told,
            "updates": [asdict(update) for update in runner.updates],
            "trained": list(prepared.trained),
            "spec": _spec_as_json(runner.spec),
            "aux": None if runner.aux is None else [runner.aux.shape, _word(runner.aux.dtype)],
            "clip_norm": prepared.clip_norm,
            "micro_batches": prepared.micro_batches,
            "params": _layouts_as_json(prepared.layouts.params),
            "buffers": _layouts_as_json(prepared.layouts.buffers),
            "optimizer": repr(prepared.optimizer),
            "measured_peak_bytes": step.measured_peak_bytes() if measure else None,
            "threads": torch.get_num_threads(),
        }
    finally:
        step.use_plan(before)
    return save(constants, metadata={_KEY: json.dumps(header, sort_keys=True)})


def load_program(packed: bytes) -> PortableProgram:
    """The program again; see above for whose bytes may be given.

    Raises:
        ConfigError: Damaged, of another form or another torch, or a text that no lowering makes.
    """
    try:
        length_bytes = int.from_bytes(packed[:_PREFIX_BYTES], "little")
        header = json.loads(json.loads(packed[_PREFIX_BYTES : _PREFIX_BYTES + length_bytes])["__metadata__"][_KEY])
        made = header["version"], header["torch"]
        if made != (_VERSION, torch.__version__):
            raise ConfigError(
                f"this program has version {made[0]} and was made by torch {made[1]}; version {_VERSION} and torch "
                f"{torch.__version__} are here: compile the plan again"
            )
        return _program_of(header, load(packed))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, SyntaxError) as error:
        raise ConfigError(f"these bytes are no program ({error!r}); compile the plan again") from error


def _program_of(header: Mapping[str, Any], constants: Mapping[str, Tensor]) -> PortableProgram:
    table = {name: _meaning(told, constants.get(name)) for name, told in header["table"].items()}
    code = checked_code(header["source"], table)
    aux = header["aux"]
    return PortableProgram(
        plan=Plan.from_json(header["plan"]),
        fingerprint=header["fingerprint"],
        runner=ProgramRunner(
            program=assemble(header["source"], code, table),
            spec=_spec(header["spec"]),
            updates=[Update(**told) for told in header["updates"]],
            clip_norm=header["clip_norm"],
            micro_batches=header["micro_batches"],
            aux=None if aux is None else AuxLayout(shape=tuple(aux[0]), dtype=_value(aux[1])),
        ),
        layouts=Layouts(params=_layouts(header["params"]), buffers=_layouts(header["buffers"])),
        trained=tuple(header["trained"]),
        optimizer=header["optimizer"],
        measured_peak_bytes=header["measured_peak_bytes"],
        threads=header["threads"],
    )


def _table_as_json(
    table: Mapping[str, Meaning], prepared: PreparedStep, constants: dict[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """What the names mean; tensors go to `constants` by name."""
    found: dict[str, dict[str, Any]] = {}
    problems = []
    for name, meaning in table.items():
        match meaning:
            case Function():
                found[name] = {"kind": meaning.kind, "target": meaning.target}
            case Constant(tensor=tensor):
                constants[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
                found[name] = {"kind": "constant", "stride": tensor.stride()}
            case Packer(codec=codec, number=number):
                options = prepared.packable.codec_options(number, codec.name)
                if CODECS[codec.name](**options) != codec:
                    problems.append(f"codec {codec!r} is none that plans name")
                found[name] = {"kind": "codec", "codec": codec.name, "options": options, "number": number}
            case Disk(nbytes=nbytes):
                found[name] = {"kind": "disk", "nbytes": nbytes}
            case Literal(value=value):
                word = _word(value)
                if word is None:
                    problems.append(f"the literal {value!r} ({type(value).__name__}) has no text")
                found[name] = {"kind": "literal", "word": word}
    if problems:
        raise ConfigError([f"this program cannot be carried elsewhere: {problem}" for problem in problems])
    return found


def _meaning(told: Mapping[str, Any], tensor: Tensor | None) -> Meaning:
    match told["kind"]:
        case "constant":
            assert tensor is not None
            strides = torch.empty_strided(tensor.shape, told["stride"], dtype=tensor.dtype)
            return Constant(tensor=strides.copy_(tensor))
        case "codec":
            # JSON has no tuples; the gates are the one option that is one.
            options = {k: tuple(v) if isinstance(v, list) else v for k, v in told["options"].items()}
            return Packer(codec=CODECS[told["codec"]](**options), number=told["number"])
        case "disk":
            return Disk(nbytes=told["nbytes"])
        case "literal":
            return Literal(value=_value(told["word"]))
    return Function(kind=told["kind"], target=told["target"])


def _word(value: Any) -> Any:
    """Something that JSON can hold, from which `_value` gives the value again; None where there is none."""
    if isinstance(value, float):  # infinities and NaN
        return {"float": repr(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value).removeprefix("torch.")}
    return None


def _value(word: Mapping[str, str]) -> Any:
    ((kind, text),) = word.items()
    if kind == "torch":
        found = getattr(torch, text)
        if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
            raise ValueError(f"torch.{text} is no type, layout or memory format")
        return found
    return float(text) if kind == "float" else torch.device(text)


def _spec_as_json(spec: BatchSpec) -> dict[str, Any]:
    return {
        "structure": pytree.treespec_dumps(spec.structure),
        "shapes": spec.shapes,
        "strides": spec.strides,
        "dtypes": [_word(dtype) for dtype in spec.dtypes],
    }


def _spec(told: Mapping[str, Any]) -> BatchSpec:
    return BatchSpec(
        pytree.treespec_loads(told["structure"]),
        _tuples(told["shapes"]),
        _tuples(told["strides"]),
        tuple(_value(word) for word in told["dtypes"]),
    )


def _tuples(lists: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers) for numbers in lists)


def _layouts_as_json(layouts: Mapping[str, Any]) -> list[Any]:
    return [[name, shape, stride, _word(dtype)] for name, (shape, stride, dtype) in layouts.items()]


def _layouts(told: Sequence[Sequence[Any]]) -> dict[str, Any]:
    return {name: (tuple(shape), tuple(stride), _value(dtype)) for name, shape, stride, dtype in told}

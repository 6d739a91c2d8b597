"""Schedule -> one generated Python function: straight-line calls, each name deleted after its last use.

The function's text can be read (`Program.source`): one line a call, `del` lines where memory ends. It takes the
inputs as lists and calls `update(i, gradient)` where an optimizer step belongs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fedhybrid.codecs import Codec
from fedhybrid.executor.naming import Constant, Disk, Function, Literal, Meaning, Packer, assemble
from fedhybrid.executor.offload import slot_bytes
from fedhybrid.executor.program import Program
from fedhybrid.graph import Op, Ref, Role, StepGraph
from fedhybrid.planner import Kind, Pack, Problem, Schedule, Step, Update, replay_form
from fedhybrid.planner.calls import FORMS
from fedhybrid.planner.inplace import IN_PLACE_FORMS, in_place_arguments, split_targets
from fedhybrid.planner.packable import OFFLOAD

__all__ = ["lower"]

# Calls before its use at which an offloaded tensor is asked for.
_READ_AHEAD = 4


def lower(
    problem: Problem, schedule: Schedule, updates: list[Update], codec_of: Callable[[int, str], Codec]
) -> Program:
    """Generates the program of a schedule; `codec_of(storage, name)` makes the codecs."""
    return _Lowering(problem, schedule, updates, codec_of).program()


class _Lowering:
    def __init__(
        self,
        problem: Problem,
        schedule: Schedule,
        updates: list[Update],
        codec_of: Callable[[int, str], Codec],
    ) -> None:
        self.problem, self.schedule, self.updates, self.codec_of = problem, schedule, updates, codec_of
        self.graph: StepGraph = problem.graph
        self.lines: list[str] = []
        self.names: dict[str, Meaning] = {}
        self.functions: dict[Function, str] = {}
        self.producer = {v: op for op in self.graph.ops for v in op.outputs if v is not None}
        self.instance_of: dict[int, int] = {}  # storage -> instance that the step at hand reads
        self.value_name: dict[tuple[int, int], str] = {}  # (value, instance) -> variable; instance -1: resident
        self.packed: dict[int, str] = {}  # instance of packed bytes -> its variable
        self.clipped = False
        self.alive: dict[int, list[str]] = {}  # instance -> its variables
        self.dying: dict[int, list[int]] = {}
        for instance, position in enumerate(schedule.last):
            self.dying.setdefault(position, []).append(instance)

    def program(self) -> Program:
        self._name_inputs()
        self._open_file()
        for position, step in enumerate(self.schedule.steps):
            self.lines += self.asked.get(position, ())
            self.instance_of = {self.schedule.storage_of[i]: i for i in step.reads}
            if step.kind is Kind.UPDATE:
                self._clip()
                grad = self._value(self.updates[step.call].grad)
                self.lines.append(f"update({step.call}, {grad})")
            elif step.kind is Kind.ENCODE:
                self._encode(step)
            elif step.kind is Kind.DECODE:
                self._decode(step)
            else:
                self._call(step)
            self._delete(position)
        self._return()
        body = "\n    ".join(self.lines)
        source = f"def step(params, buffers, batch, update, clip):\n    {body}\n"
        code = compile(source, "<fedhybrid step>", "exec")  # our own text, made above from the graph alone
        return assemble(source, code, self.names)

    def _clip(self) -> None:
        """Hands all gradients over at once, before the first update, where updates wait for the end."""
        if self.problem.hold_gradients and not self.clipped:
            last_of = {s: i for i, s in enumerate(self.schedule.storage_of)}  # the newest life of each storage
            reading, self.instance_of = self.instance_of, last_of
            self.lines.append(f"clip([{', '.join(self._value(u.grad) for u in self.updates)}])")
            self.instance_of, self.clipped = reading, True

    def _name_inputs(self) -> None:
        for group, values in (
            ("params", list(self.graph.params.values())),
            ("buffers", list(self.graph.buffers.values())),
            ("batch", self.graph.batch),
        ):
            for position, value in enumerate(values):
                self.value_name[value, -1] = f"{group}[{position}]"
        for number, (value, tensor) in enumerate(self.graph.constants.items()):
            self.names[f"constant{number}"] = Constant(tensor=tensor)
            self.value_name[value, -1] = f"constant{number}"

    def _instance(self, value: int) -> int:
        storage = self.graph.storage_of(value)
        return self.instance_of[storage] if self.graph.storages[storage].role is Role.TEMP else -1

    def _value(self, value: int) -> str:
        """The variable of a value, after emitting the view operators that lead to it from its storage's instance."""
        key = (value, self._instance(value))
        if key not in self.value_name:
            view = self.producer[value]
            assert view.is_view, f"{view.name} is read before it is made"
            base = self._value(next(ref.value for ref in view.args if isinstance(ref, Ref)))
            args = self._arguments(view, {0: base})
            result = f"{self._function(view.target)}({args})"
            if view.is_tuple:
                result += f"[{view.outputs.index(value)}]"
            self._assign(value, key[1], result)
        return self.value_name[key]

    def _assign(self, value: int, instance: int, text: str) -> None:
        name = self._new_name(value, instance)
        self.lines.append(f"{name} = {text}")

    def _new_name(self, value: int, instance: int) -> str:
        name = f"v{value}" if instance < 0 else f"v{value}_{instance}"
        self.value_name[value, instance] = name
        if instance >= 0:
            self.alive.setdefault(instance, []).append(name)
        return name

    def _encode(self, step: Step) -> None:
        """Packs a storage; its whole memory is one tensor, whatever views of it exist."""
        pack = self.problem.packs[step.call]
        if pack.codec == OFFLOAD:
            self.lines.append(f"file.write({self.slots[pack.stored]}, {self._value(self._whole(pack.storage))})")
            return
        name = f"p{pack.stored}_{step.births[0]}"
        self.alive[step.births[0]] = [name]
        self.packed[step.births[0]] = name
        self.lines.append(f"{name} = {self._codec(pack)}.encode({self._value(self._whole(pack.storage))})")

    def _decode(self, step: Step) -> None:
        pack = self.problem.packs[step.call]
        whole = self.graph.values[self._whole(pack.storage)]
        layout = f"{whole.shape}, {whole.stride}, {self._literal(whole.dtype)}"
        name = self._new_name(whole.index, step.births[0])
        if pack.codec == OFFLOAD:
            made = f"file.read({self.slots[pack.stored]}, {whole.nbytes}, {layout})"
        else:
            made = f"{self._codec(pack)}.decode({self.packed[step.reads[0]]}, {layout})"
        self.lines.append(f"{name} = {made}")
        for value in self.graph.values:  # what was written in place has several names for the same tensor
            same = (value.shape, value.stride, value.offset) == (whole.shape, whole.stride, whole.offset)
            if value.storage == pack.storage and same and not self.producer[value.index].is_view:
                self.value_name[value.index, step.births[0]] = name

    def _open_file(self) -> None:
        """Makes room on disk for what the plan puts there, and asks for each slot a little before it is read."""
        self.slots: dict[int, int] = {}
        self.asked: dict[int, list[str]] = {}
        end = 0
        for position, step in enumerate(self.schedule.steps):
            if step.kind not in (Kind.ENCODE, Kind.DECODE) or self.problem.packs[step.call].codec != OFFLOAD:
                continue
            pack = self.problem.packs[step.call]
            nbytes = self.problem.nbytes[pack.storage]
            if step.kind is Kind.ENCODE:
                self.slots[pack.stored] = end
                end += slot_bytes(nbytes)
            else:
                ahead = max(self.schedule.backward_at, position - _READ_AHEAD)
                self.asked.setdefault(ahead, []).append(f"file.prefetch({self.slots[pack.stored]}, {nbytes})")
        if end:
            self.names["file"] = Disk(nbytes=end)

    def _whole(self, storage: int) -> int:
        """The storage's first value, which fills it (`planner.packs` takes no others)."""
        return next(v.index for v in self.graph.values if v.storage == storage and v.base is None)

    def _codec(self, pack: Pack) -> str:
        name = f"codec{pack.stored}"
        if name not in self.names:
            self.names[name] = Packer(codec=self.codec_of(pack.storage, pack.codec), number=pack.storage)
        return name

    def _call(self, step: Step) -> None:
        op = self.graph.ops[step.call]
        if step.kind is Kind.REPLAY:
            form = replay_form(self.graph, op, exact_affine=self.problem.costs.exact_affine)
            assert form is not None
            op = form
        births = {self.schedule.storage_of[i]: i for i in step.births}
        targets = []
        taken = self.schedule.storage_of[step.in_place] if step.in_place >= 0 else -1
        if step.chunks > 1 or (taken >= 0 and op.target not in IN_PLACE_FORMS):
            text = self._split_text(op, step.chunks, taken)
        elif taken >= 0:
            text = self._in_place_text(op, taken)
        else:
            text = f"{self._function(op.target)}({self._arguments(op, {})})"
        for value in op.outputs:
            storage = -1 if value is None else self.graph.storage_of(value)
            if value is None:
                targets.append("_none")
            elif storage in births:
                targets.append(self._new_name(value, births[storage]))
            else:  # written in place: another name for memory that is alive already
                targets.append(self._new_name(value, self._instance(value)))
        if not targets:
            self.lines.append(text)
        elif op.is_tuple:
            self.lines.append(f"{', '.join(targets)}{',' if len(targets) == 1 else ''} = {text}")
        else:
            self.lines.append(f"{targets[0]} = {text}")
        if "_none" in targets:  # an operator may make what it was told is not wanted; it must not stay
            self.lines.append("del _none")

    def _in_place_text(self, op: Op, storage: int) -> str:
        form, _, keyword = IN_PLACE_FORMS[op.target]
        position = next(p for p, s in in_place_arguments(self.graph, op) if s == storage)
        function = self._function(form)
        if keyword is not None:
            return f"{function}({self._arguments(op, {})}, {keyword}={self._value(op.args[position].value)})"
        args = list(op.args)
        if position == 1:  # a + b and a * b into b
            args[0], args[1] = args[1], args[0]
        return f"{function}({self._text_of(tuple(args), op.kwargs, {})})"

    def _split_text(self, op: Op, chunks: int, taken: int) -> str:
        text = f"{self._function(op.target, 'split')}({self._arguments(op, {})}, chunks={chunks}"
        if taken >= 0:
            position = next(p for p, s in split_targets(self.graph, op) if s == taken)
            text += f", into={self._value(op.args[position].value)}"
        return text + ")"

    def _arguments(self, op: Op, given: dict[int, str]) -> str:
        return self._text_of(op.args, op.kwargs, given)

    def _text_of(self, args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[int, str]) -> str:
        parts = [given.get(i) or self._literal(arg) for i, arg in enumerate(args)]
        parts += [f"{key}={self._literal(arg)}" for key, arg in kwargs.items()]
        return ", ".join(parts)

    def _literal(self, arg: Any) -> str:
        if isinstance(arg, Ref):
            return self._value(arg.value)
        if isinstance(arg, (tuple, list)):
            inner = ", ".join(self._literal(item) for item in arg)
            return f"[{inner}]" if isinstance(arg, list) else f"({inner},)"
        if arg is None or isinstance(arg, (bool, int, str)):
            return repr(arg)
        if isinstance(arg, float) and math.isfinite(arg):
            return repr(arg)
        name = f"literal{len(self.names)}"
        self.names[name] = Literal(value=arg)
        return name

    def _function(self, target: str, kind: str | None = None) -> str:
        function = Function(kind=kind or ("form" if target in FORMS else "operator"), target=target)
        if function not in self.functions:
            plain = target.split(".")[1]
            name = f"f{len(self.functions)}_{'' if function.kind == 'operator' else function.kind + '_'}{plain}"
            self.functions[function] = name
            self.names[name] = function
        return self.functions[function]

    def _delete(self, position: int) -> None:
        names = [name for i in self.dying.get(position, ()) for name in self.alive.pop(i, ())]
        if names:
            self.lines.append(f"del {', '.join(names)}")

    def _return(self) -> None:
        end = len(self.schedule.steps)
        self.instance_of = {self.schedule.storage_of[i]: i for i in self.dying.get(end, ())}
        aux = "None" if self.graph.aux is None else self._value(self.graph.aux)
        self.lines.append(f"return {self._value(self.graph.loss)}, {aux}")

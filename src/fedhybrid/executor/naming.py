"""What the names in a generated program stand for: as data, and the objects that they become.

A program is text and a table. The text calls names; the table says what each is, in the small records below, so that
a program can be written down and run by another process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from torch import Tensor

from fedhybrid.codecs import BoundCodec, Codec
from fedhybrid.executor.offload import OffloadFile
from fedhybrid.executor.program import Program
from fedhybrid.graph import overload
from fedhybrid.planner.calls import FORMS
from fedhybrid.planner.splits import SPLITS

__all__ = ["Constant", "Disk", "Function", "Literal", "Meaning", "Packer", "assemble"]


@dataclass(frozen=True, kw_only=True)
class Function:
    """What is called: an operator by its overload's name, its split ("split"), or a form of our own ("form").

    Own forms and splits are rows of tables: `planner.calls.FORMS` and `planner.splits.SPLITS`.
    """

    kind: str
    target: str

    def resolved(self) -> Callable[..., Any]:
        """The function itself."""
        if self.kind == "operator":
            return overload(self.target)
        return FORMS[self.target] if self.kind == "form" else SPLITS[self.target].func


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """A tensor that the model holds outside its parameters and buffers."""

    tensor: Tensor


@dataclass(frozen=True, kw_only=True)
class Literal:
    """A value whose `repr` is no Python: a type, a layout, an infinity."""

    value: Any


@dataclass(frozen=True, kw_only=True)
class Packer:
    """A codec at work on the tensor of that number."""

    codec: Codec
    number: int


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A file of that size for tensors that wait there."""

    nbytes: int


Meaning = Function | Constant | Literal | Packer | Disk


def assemble(source: str, code: CodeType, table: Mapping[str, Meaning]) -> Program:
    """The program of a text whose names the table explains.

    Args:
        source: Defines `step(params, buffers, batch, update, clip)`; kept to be read.
        code: `source`, compiled. It is executed: it must be this package's own making.
        table: Every name that the text uses.
    """
    scope: dict[str, Any] = {}
    codecs: list[BoundCodec] = []
    for name, meaning in table.items():
        match meaning:
            case Function():
                scope[name] = meaning.resolved()
            case Constant():
                scope[name] = meaning.tensor
            case Literal():
                scope[name] = meaning.value
            case Disk():
                scope[name] = OffloadFile(None, meaning.nbytes)
            case Packer():
                codecs.append(BoundCodec(meaning.codec, meaning.number))
                scope[name] = codecs[-1]
    exec(code, scope)
    return Program(run=scope["step"], source=source, table=table, codecs=tuple(codecs))

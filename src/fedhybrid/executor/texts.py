"""The form that a generated program's text may have, checked on its syntax tree before it is compiled."""

from __future__ import annotations

import ast
from collections.abc import Collection
from types import CodeType

from fedhybrid.errors import ConfigError

__all__ = ["checked_code"]

_PARAMETERS = ("params", "buffers", "batch", "update", "clip")
_CALLBACKS = ("update", "clip")
_METHODS = {"codec": ("encode", "decode"), "file": ("write", "read", "prefetch")}


def checked_code(source: str, known: Collection[str]) -> CodeType:
    r"""A program's text, compiled.

    Args:
        source: One function `step(params, buffers, batch, update, clip)` of assignments, calls, `del` and a `return`.
        known: Names that it may call or read beside its parameters and its own variables.

    Raises:
        ConfigError: It has anything else in it.
        SyntaxError: It is no Python.

    >>> checked_code("def step(params, buffers, batch, update, clip):\n    return open('x'), None\n", [])
    Traceback (most recent call last):
    fedhybrid.errors.ConfigError: line 2 of a program may not say "open('x')"; compile the plan again
    """
    tree = ast.parse(source, "<fedhybrid step>")
    _Form(frozenset(known)).check(tree)
    return compile(tree, "<fedhybrid step>", "exec")


class _Form:
    def __init__(self, known: frozenset[str]) -> None:
        self.known = known
        self.variables = set(_PARAMETERS)

    def check(self, tree: ast.Module) -> None:
        function = tree.body[0] if len(tree.body) == 1 else tree
        if not isinstance(function, ast.FunctionDef) or function.name != "step" or function.decorator_list:
            raise ConfigError("a program must be one function called step; compile the plan again")
        wanted = ast.arguments(posonlyargs=[], args=[ast.arg(name) for name in _PARAMETERS], kwonlyargs=[],
                               kw_defaults=[], defaults=[])  # fmt: skip
        if ast.dump(function.args) != ast.dump(wanted) or function.returns is not None:
            self.refuse(function)
        for line in function.body:
            self.statement(line)

    def refuse(self, node: ast.stmt | ast.expr) -> None:
        text = ast.unparse(node).partition("\n")[0]
        raise ConfigError(f'line {node.lineno} of a program may not say "{text}"; compile the plan again')

    def statement(self, line: ast.stmt) -> None:
        match line:
            case ast.Assign(targets=[target], value=value):
                self.made(value)
                self.target(target)
            case ast.Expr(value=ast.Call() as call):
                self.called(call)
            case ast.Delete(targets=targets) if all(isinstance(each, ast.Name) for each in targets):
                pass
            case ast.Return(value=ast.Tuple(elts=[loss, aux])):
                self.value(loss)
                self.value(aux)
            case _:
                self.refuse(line)

    def target(self, node: ast.expr) -> None:
        for name in node.elts if isinstance(node, ast.Tuple) else [node]:
            if not isinstance(name, ast.Name) or name.id in self.known or name.id in _PARAMETERS:
                self.refuse(node)
            else:
                self.variables.add(name.id)

    def made(self, node: ast.expr) -> None:
        """A call, or one of the results of one."""
        match node:
            case ast.Call():
                self.called(node)
            case ast.Subscript(value=ast.Call() as call, slice=ast.Constant(value=int())):
                self.called(call)
            case _:
                self.refuse(node)

    def called(self, call: ast.Call) -> None:
        match call.func:
            case ast.Name(id=name) if name in self.known or name in _CALLBACKS:
                pass
            case ast.Attribute(value=ast.Name(id=name), attr=method) if name in self.known and method in _METHODS.get(
                name.rstrip("0123456789"), ()
            ):
                pass
            case _:
                self.refuse(call)
        for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
            self.value(argument)
        if any(keyword.arg is None for keyword in call.keywords):
            self.refuse(call)

    def value(self, node: ast.expr) -> None:
        """A variable, a literal, one tensor of the inputs, or a list of such."""
        match node:
            case ast.Constant() | ast.UnaryOp(op=ast.USub(), operand=ast.Constant()):
                pass
            case ast.Name(id=name) if name in self.variables or name in self.known:
                pass
            case ast.Subscript(value=ast.Name(id="params" | "buffers" | "batch"), slice=ast.Constant(value=int())):
                pass
            case ast.Tuple(elts=inner) | ast.List(elts=inner):
                for each in inner:
                    self.value(each)
            case _:
                self.refuse(node)

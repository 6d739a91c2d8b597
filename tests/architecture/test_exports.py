"""What a module lists in `__all__` is sorted, there, and complete where the module is a package's face."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module
from types import ModuleType

import pytest
from tests.architecture.modules import MODULES, PACKAGES


def rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order that ruff's RUF022 gives."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def problems_of(listed: list[str], module: ModuleType) -> list[str]:
    found = [f"{name} is listed but missing" for name in listed if not hasattr(module, name)]
    found += [f"{name} is listed twice" for name in sorted({n for n in listed if listed.count(n) > 1})]
    return found if listed == sorted(listed, key=rank) else [*found, "not sorted"]


def defined_in(module: ModuleType) -> set[str]:
    """Public functions, classes and tables that the file itself defines."""
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_listed_names_are_sorted_and_there(name: str) -> None:
    module = import_module(name)
    assert problems_of(module.__all__, module) == []


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lists_all_that_its_face_defines(name: str) -> None:
    module = import_module(name)
    assert defined_in(module) - set(module.__all__) == set()


def test_a_misspelt_name_would_be_seen() -> None:
    module = import_module("fedhybrid.units")
    assert problems_of(["parse_byte"], module) == ["parse_byte is listed but missing"]
    assert problems_of(["parse_bytes", "Budget"], module) == ["not sorted"]

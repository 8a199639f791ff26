"""Rules for the source itself: short files, no unused names, and the functions that compile() passes through."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from inspect import unwrap
from pathlib import Path
from types import FrameType

import pytest

import forerun
from forerun.codegen.backends import BACKENDS, named
from tests.models import FAMILIES

ROOT = Path(__file__).parent.parent
LONGEST_FILE = 400
FOLLOWED = 16
"""Functions from compile() to the first kernel, at most."""
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in ("forerun", "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def test_no_file_is_too_long() -> None:
    lines = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in FILES.items()}
    assert {module: count for module, count in lines.items() if count > LONGEST_FILE} == {}


def test_names_of_test_files_differ() -> None:
    """pytest imports test files by their names alone, and refuses a second file of the same name."""
    names = Counter(path.name for path in FILES.values() if path.name.startswith("test_"))
    assert {name: count for name, count in names.items() if count > 1} == {}


def defined(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """The names that a module defines, less those that a decorator registers or a tool looks for."""
    for statement in tree.body:
        match statement:
            case ast.FunctionDef(name=name, decorator_list=[]) | ast.ClassDef(name=name):
                yield name, statement
            case ast.Assign(targets=targets):
                for each in (each for target in targets for each in ast.walk(target)):
                    if isinstance(each, ast.Name):
                        yield each.id, statement
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case _:
                pass


def words(tree: ast.AST) -> Iterator[str]:
    """The names that code uses; strings count as the last name of "module:name" or "module.name"."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case ast.ImportFrom(names=names):
                yield from (each.name for each in names)
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w.:]+", text):
                yield from re.split(r"[.:]", text)
            case _:
                pass


def test_no_name_leads_nowhere() -> None:
    """Every name that a module defines is used somewhere outside of its own definition, `__init__` files aside."""
    used: dict[str, int] = {}
    faces = {module for module in FILES if module.endswith("__init__")}
    for module in FILES.keys() - faces:
        for word in words(TREES[module]):
            used[word] = used.get(word, 0) + 1
    dead: list[str] = []
    for module in FILES.keys() - faces:
        for name, statement in defined(TREES[module]):
            looked_for = name.startswith(("test_", "Test", "__", "pytest")) or name in forerun.__all__
            if not looked_for and used.get(name, 0) <= sum(word == name for word in words(statement)):
                dead.append(f"{module}.{name}")
    assert dead == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_an_entry_of_the_registry_names_is_there(backend: str) -> None:
    pytest.importorskip("triton")
    entry = BACKENDS[backend]
    references = [*vars(entry).values(), *vars(entry.kept or entry.ahead or object).values()]
    found = [each for each in references if isinstance(each, str) and ":" in each]
    assert len(found) >= 2
    for each in found:
        assert callable(named(each)), each


def test_compile_can_be_followed_to_the_first_kernel() -> None:
    """The functions that docs/architecture.md lists are entered in this order."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = text.partition("<!-- followed -->")[2].partition("<!-- /followed -->")[0]
    names = re.findall(r"^\d+\. `([\w.]+:[\w.]+)`", listed, re.MULTILINE)
    assert 0 < len(names) <= FOLLOWED
    codes = {unwrap(named(f"forerun.{name}")).__code__: name for name in names}
    entered: dict[str, None] = {}

    def follow(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in codes:
            entered.setdefault(codes[frame.f_code])

    model = FAMILIES["llama"]()
    before = sys.getprofile()
    sys.setprofile(follow)
    try:
        forerun.compile(model, "autoregressive", target="cpu", max_length=64).generate([5, 9, 200], 2)
    finally:
        sys.setprofile(before)
    assert list(entered) == names

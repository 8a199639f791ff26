"""Runs the text tests: the `RUN` lines of every .mlir file below, in this process.

    // RUN: forerun-opt %s -p pass | filecheck %s
    // RUN: not forerun-opt %s 2>&1 | filecheck %s --check-prefix ERROR

A line is a pipeline: each command gets the output of the one before. `not` expects a command to fail, `2>&1` joins its
errors to its output. `%s` is the file.
"""

import io
import re
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser

from forerun import opt
from forerun.ir import OPERATIONS
from forerun.passes.pipeline import PASSES

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.rglob("*.mlir"))


def run_lines(file: Path) -> list[str]:
    marks = (line.partition("// RUN:") for line in file.read_text().splitlines())
    return [command.strip() for before, mark, command in marks if mark and not before]


def forerun_opt(arguments: list[str], given: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    output, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(given))
    with redirect_stdout(output), redirect_stderr(errors):
        code = opt.main(arguments)
    return code, output.getvalue(), errors.getvalue()


def filecheck(arguments: list[str], given: str) -> tuple[int, str, str]:
    options = parse_argv_options(["filecheck", *arguments])
    errors = io.StringIO()
    with redirect_stdout(errors), redirect_stderr(errors):
        code = Matcher(options, FInput("<output>", given), Parser.from_opts(options)).run()
    return code, "", errors.getvalue()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_run_lines(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_lines(file)
    assert lines, f"{file} has no RUN line"
    for line in lines:
        text = ""
        for command in line.split(" | "):
            words = [str(file) if word == "%s" else word for word in shlex.split(command)]
            fails, joined = words[0] == "not", words[-1] == "2>&1"
            name, *arguments = words[fails : len(words) - joined]
            if name == "forerun-opt":
                code, output, errors = forerun_opt(arguments, text, monkeypatch)
            else:
                assert name == "filecheck", f"{file}: there is no command {name!r}"
                code, output, errors = filecheck(arguments, text)
            assert bool(code) == fails, f"{line}\nexit code {code}\n{errors}\n--- its input:\n{text}"
            text = errors + output if joined else output


def test_every_pass_has_a_text_test() -> None:
    run = " ".join(line for file in FILES for line in run_lines(file))
    assert not [name for name in PASSES if not re.search(rf"[ ,\"]{name}\b", run)]


def test_every_operation_has_a_text_test() -> None:
    texts = "".join(file.read_text() for file in (FOLDER / "ops").glob("*.mlir"))
    assert not [operation.name for operation in OPERATIONS if f"{operation.name}(" not in texts.replace(" @", "(")]

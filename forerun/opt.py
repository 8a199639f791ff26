"""forerun-opt: runs passes over IR text, like mlir-opt.

    forerun-opt model.mlir -p canonicalize,tabulate-positions{max_length=64}

The module goes to standard output, with the passes' notes as comments above it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from forerun.errors import ForerunError, InvalidOptionError, PassError, SourceNotFoundError, VerificationError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from forerun.passes.base import Pass
    from forerun.passes.pipeline import PassRecord

NAME = "forerun-opt"
SEPARATOR = "// -----"
"""Separates the modules of a file, as in mlir-opt's --split-input-file."""
LARGEST_FILE = 1 << 28
"""The most bytes of a file: text carries no weights."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the tool; the exit codes are those of `forerun.tool`."""
    try:
        from forerun.tool import run_tool

        return run_tool(NAME, _main, argv)
    except KeyboardInterrupt:  # during that import
        return 130


def _main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        print(_listing(), end="")
        return 0
    modules = list(_modules(options.file, options.split_input_file))

    from forerun.passes.pipeline import parse_passes
    from forerun.storage import expanded, write_atomically
    from forerun.tool import refuse

    passes = list(parse_passes(_passes(options.passes)))
    code, results = 0, list[str]()
    for index, (name, text) in enumerate(modules):
        separator, shown = f"{SEPARATOR}\n" if index else "", ""
        try:
            shown = _run_guarded(name, text, passes, options)
        except ForerunError as error:
            code = refuse(NAME, error)
        if options.output == "-":
            print(separator, shown, sep="", end="")
        else:
            results.append(separator + shown)
    if results and not code:
        write_atomically(expanded(options.output), "".join(results))
    return code


def _passes(text: str) -> str:
    """The passes that an option or, behind @, a file lists: there a line has one or several, and # begins a comment."""
    if not text.startswith("@"):
        return text
    lines = (line.partition("#")[0].strip().rstrip(",") for line in _read(text[1:]).splitlines())
    return ",".join(filter(None, lines))


def _parser() -> argparse.ArgumentParser:
    from forerun import __version__
    from forerun.tool import Parser

    parser = Parser(prog=NAME, description="Run passes over a module of the spec dialect.")
    parser.add_argument("file", nargs="?", default="-", help="a file of MLIR text, or - for standard input")
    parser.add_argument(
        "-p",
        "--passes",
        default="",
        metavar="PASSES",
        help="the passes in order: name,name{option=value}; step and kernels are several; @FILE reads them from a file",
    )
    parser.add_argument("-o", "--output", default="-", metavar="FILE", help="where to write, if all went well")
    parser.add_argument("--generic", action="store_true", help="print MLIR's generic form")
    parser.add_argument("--locations", action="store_true", help="print source lines")
    parser.add_argument("--print-between-passes", action="store_true", help="print the module after every pass")
    parser.add_argument("--time", action="store_true", help="print the time of every pass to standard error")
    parser.add_argument("--no-verify", action="store_true", help="do not verify the module, before or between passes")
    parser.add_argument(
        "--split-input-file",
        action="store_true",
        help=f"read several modules from one file, separated by lines {SEPARATOR}",
    )
    parser.add_argument("--list", action="store_true", help="list the passes and their options")
    parser.add_argument(
        "--traceback", action="store_true", help="show where in forerun a pass failed that gives no reason"
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    return parser


def _modules(file: str, split: bool) -> Iterable[tuple[str, str]]:
    """Yields (name, text) of every module of a file."""
    name, text = "<stdin>" if file == "-" else file, _read(file)
    if not split:
        yield name, text
        return
    line = 1
    for part in text.split(f"\n{SEPARATOR}\n"):
        yield name, "\n" * (line - 1) + part  # keeps the file's line numbers in the parser
        line += part.count("\n") + 2


def _read(file: str) -> str:
    """Returns the text of a file, or of standard input for "-". A FIFO without a writer counts as empty."""
    from forerun.tool import read_bytes

    try:
        content = read_bytes(file, LARGEST_FILE)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"There is no file {file!r}; give one of MLIR text, or - for stdin.") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidOptionError(
            f"{file!r} is not UTF-8 text (byte {error.start}); give a file of MLIR text."
        ) from error


def _run_guarded(name: str, text: str, passes: Sequence[Pass], options: argparse.Namespace) -> str:
    """Runs passes on any module; if a pass meets something unexpected, the error is a sentence that names the pass."""
    try:
        return _run(name, text, passes, options)
    except VerificationError as error:
        if f"\n{SEPARATOR}" in text and not options.split_input_file:
            error.args = (f"{error}\nThe file has lines {SEPARATOR}; read what is between them by --split-input-file.",)
        raise
    except (ForerunError, OSError, MemoryError):
        raise
    except RecursionError as error:
        raise PassError(f"{name} is nested too deeply; give a module with fewer levels.") from error
    except Exception as error:
        if options.traceback:
            raise
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise PassError(
            f"The passes cannot work on {name} ({what}); run them in the order of forerun dump, or see --traceback."
        ) from error


def _run(name: str, text: str, passes: Sequence[Pass], options: argparse.Namespace) -> str:
    from forerun.ir import parse_ir, print_ir, verify
    from forerun.passes.base import PassContext
    from forerun.passes.pipeline import run_pipeline

    module = parse_ir(text, name)
    if not options.no_verify:
        verify(module)
    records: list[PassRecord] = []
    shown: list[str] = []
    context = PassContext()
    for each in passes:
        records += run_pipeline(module, [each], context, check=not options.no_verify)
        if options.print_between_passes:
            header = records[-1].header(changed=True)
            shown.append(f"{header}{print_ir(module, options.generic, options.locations)}\n")
    if options.time:
        _print_times(records)
    if not shown:
        shown += [f"// {note}\n" for note in context.notes]
        shown.append(print_ir(module, options.generic, options.locations))
    return "".join(shown)


def _print_times(records: Sequence[PassRecord]) -> None:
    for each in records:
        print(f"{each.seconds * 1e3:9.1f} ms  {each.name} ({each.before} -> {each.after} operations)", file=sys.stderr)
    print(f"{sum(each.seconds for each in records) * 1e3:9.1f} ms  in all", file=sys.stderr)


def _listing() -> str:
    import inspect
    from dataclasses import fields

    from forerun.passes.pipeline import PASSES, PIPELINES

    lines: list[str] = []
    for name, kind in PASSES.items():
        summary = (inspect.getdoc(inspect.getmodule(kind)) or "").partition("\n")[0]
        lines.append(f"{name:24}{summary.partition(': ')[2]}")
        lines += [f"{'':24}  {each.name}={each.default}" for each in fields(kind) if each.init]
    for name, passes in PIPELINES.items():
        lines.append(f"{name:24}{', '.join(each.name for each in passes)}")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())

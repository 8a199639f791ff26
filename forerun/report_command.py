"""What `forerun report` does with its parsed options: writes a page, its data beside it, and a trace.

Nothing is imported before it is needed, so that bad options are refused and Ctrl-C takes effect at once.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from forerun.commands import check, opening, require_tokenizer
from forerun.errors import InvalidOptionError
from forerun.storage import expanded, write_atomically

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from forerun.reporting import Given

DATA, PAGE = ".json", ".html"


def run_report(arguments: argparse.Namespace) -> int:
    page_file = require_file("--out", arguments.out)
    if page_file.suffix == DATA:
        raise InvalidOptionError(
            f"--out {arguments.out!r} names the page, and its data is written beside it as {DATA}: end it in {PAGE}."
        )
    trace_file = None if arguments.trace is None else require_file("--trace", arguments.trace)
    own = {page_file.resolve(), page_file.with_suffix(DATA).resolve()}
    if trace_file is not None and trace_file.resolve() in own:
        raise InvalidOptionError(f"--trace {arguments.trace!r} names a file of the report itself: give another one.")
    if arguments.compare is not None:
        return _compare(arguments, page_file)
    if arguments.model is None:
        raise InvalidOptionError("report needs a MODEL, or --compare with two reports' data: give one of them.")
    check(arguments)
    given = _given(arguments)

    from forerun.progress import open_progress
    from forerun.report.page import page
    from forerun.report.trace import trace
    from forerun.reporting import make_report

    progress = open_progress(quiet=arguments.quiet or arguments.json)
    report = make_report(given, progress)
    written = {page_file: page(report), page_file.with_suffix(DATA): report.text()}
    if trace_file is not None:
        written[trace_file] = trace(report)
    for file, text in written.items():
        write_atomically(file, text)
    _say(arguments, list(written))
    return 0


def _compare(arguments: argparse.Namespace, page_file: Path) -> int:
    if arguments.model is not None:
        raise InvalidOptionError("--compare reads two reports' data: leave out MODEL.")
    if arguments.trace is not None:
        raise InvalidOptionError("--compare writes no trace: leave out --trace.")
    from forerun.report.data import read_report
    from forerun.report.page import comparison_page

    first, second = (expanded(name) for name in arguments.compare)
    reports = read_report(first), read_report(second)
    names = (first.stem, second.stem) if first.stem != second.stem else (str(first), str(second))
    write_atomically(page_file, comparison_page(*reports, names))
    _say(arguments, [page_file])
    return 0


def _say(arguments: argparse.Namespace, files: list[Path]) -> None:
    if arguments.json:
        print(json.dumps({"files": [str(each) for each in files], "bytes": files[0].stat().st_size}))
    else:
        print(f"written to {', '.join(map(str, files))}")


def require_file(name: str, given: str) -> Path:
    """Returns the path of a file that can be written in a folder that exists.

    Raises `InvalidOptionError`, which refers to the option by its `name`.
    """
    path = expanded(given)
    if path.is_dir() or not path.name:
        raise InvalidOptionError(f"{name} {given!r} is a folder: give the path of a file in it.")
    if not path.parent.is_dir():
        raise InvalidOptionError(
            f"{name} {given!r} lies in a folder that does not exist, {str(path.parent)!r}: create it, or give another "
            "path."
        )
    return path


def _given(arguments: argparse.Namespace) -> Given:
    from forerun.codegen.backends import BACKENDS
    from forerun.compile_options import resolve_arithmetic, resolve_target
    from forerun.prompt_input import prompt_file, prompt_text, token_ids
    from forerun.runtime.options import require_integer

    new_tokens = require_integer("max_new_tokens", arguments.max_new_tokens, least=1)
    if arguments.token_ids is not None:
        prompt = token_ids(arguments.token_ids)
    elif arguments.prompt_file is not None:
        prompt = prompt_text(prompt_file(arguments.prompt_file), f"The prompt file {arguments.prompt_file}")
    else:
        prompt = None if arguments.prompt is None else prompt_text(arguments.prompt, "--prompt")
    if isinstance(prompt, str):
        require_tokenizer(arguments.model)
    target = resolve_target(arguments.target, arguments.dtype)
    resolve_arithmetic(arguments.arithmetic, target, arguments.dtype)
    if not arguments.no_run:
        BACKENDS[target].require_usable()
    from forerun.reporting import Given

    return Given(
        arguments.model,
        arguments.strategy,
        arguments.dtype,
        target,
        arguments.max_length,
        arguments.arithmetic,
        opening(arguments),
        prompt,
        arguments.raw,
        new_tokens,
        not arguments.no_run,
    )

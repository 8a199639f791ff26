"""The commands `forerun bench` and `forerun tune`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from rich.console import Console

from forerun import benching
from forerun.benching import Generated, Options
from forerun.build import Opening
from forerun.codegen.backends import named
from forerun.compile_options import resolve_arithmetic, resolve_target
from forerun.errors import InvalidOptionError
from forerun.overrides import all_tuned, forget_tuned
from forerun.progress import Progress, open_progress
from forerun.runtime.model import source_name
from forerun.runtime.options import require_integer
from forerun.storage import expanded


def bench(arguments: argparse.Namespace, opening: Opening, console: Callable[[], Console]) -> int:
    """Times the kernels of a step; or checks an edited one and times it beside the generated one."""
    options = _options(arguments)
    if arguments.override is not None or arguments.asm:
        return _bench_one(arguments, options, opening, console)
    model = arguments.compiled(arguments)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    found, peaks, context = benching.bench(model.executable, model.target, arguments.kernel, options, progress)
    if not arguments.json:
        benching.print_lines(found, peaks, console())
        return 0
    kernels = [each.to_dict() for each in found]
    measured = {"bandwidth": peaks.bandwidth, "flops": dict(peaks.flops)}
    shown = {"target": model.target, "dtype": model.dtype, "context": context, "overrides": model.overrides}
    print(json.dumps({**shown, "peaks": measured, "kernels": kernels}))
    return 0


def _bench_one(
    arguments: argparse.Namespace, options: Options, opening: Opening, console: Callable[[], Console]
) -> int:
    if arguments.override is not None and arguments.asm:
        raise InvalidOptionError("--asm shows the generated kernel: leave out --override, or --asm.")
    if arguments.asm and arguments.kernel is None:
        raise InvalidOptionError("--asm shows one kernel: give --kernel, or use forerun dump --asm for all.")
    target = resolve_target(arguments.target, arguments.dtype)
    benching.require_tuning(target)
    path = None if arguments.override is None else expanded(arguments.override)
    if path is not None and not path.is_file():
        raise InvalidOptionError(
            f"--override names {path}, which is not a file: give one that forerun dump has written."
        )
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    model = _generated(arguments, target, opening, progress)
    if path is None:
        return _show(model, arguments)
    source, text = benching.edited_source(model, arguments.kernel, path)
    raced, compared = benching.compare(model, source, text, options, progress)
    if arguments.json:
        print(json.dumps(benching.race_dict(source, raced, compared)))
    else:
        benching.print_race(source, raced, compared, console())
    return 0


def _show(model: Generated, arguments: argparse.Namespace) -> int:
    """Prints what the kernel is compiled to."""
    chosen = benching.chosen_groups(model.program.program, arguments.kernel)
    names = dict.fromkeys(source for group in chosen for source in group.sources)
    own = [arguments.kernel] if arguments.kernel in names else [*names]
    texts = named(model.tuning.assembly)(model.program, own)
    if arguments.json:
        print(json.dumps(texts))
        return 0
    for name, text in texts.items():
        print(f"==> {name}", text, sep="\n")
    return 0


def tune(arguments: argparse.Namespace, opening: Opening, console: Callable[[], Console]) -> int:
    """Searches for faster kernels and keeps them; or lists or drops what was found."""
    if arguments.list and arguments.forget:
        raise InvalidOptionError("--list and --forget contradict each other: leave one out.")
    if arguments.list and arguments.model is None:
        return _tell(arguments, console)
    if arguments.forget and arguments.model is None:
        return _forgotten(arguments, forget_tuned())
    if arguments.model is None:
        raise InvalidOptionError("forerun tune needs a model, unless --list or --forget is given: name one.")
    options = _options(arguments)
    if not 0 < arguments.budget < float("inf"):
        raise InvalidOptionError(f"--budget is {arguments.budget}: give a number of seconds above 0.")
    target = resolve_target(arguments.target, arguments.dtype)
    benching.require_tuning(target)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    model = _generated(arguments, target, opening, progress)
    key = model.program.program.generated
    if arguments.forget:
        return _forgotten(arguments, forget_tuned(key))
    if arguments.list:
        return _tell(arguments, console, key)
    label = f"{source_name(arguments.model)} {arguments.dtype}"
    found, result = benching.tuned(model, arguments.kernel, label, options, arguments.budget, progress)
    if arguments.json:
        print(json.dumps(benching.tuned_dict([result])[0]))
        return 0
    if not found:
        print("nothing is faster than the generated kernels by more than the noise")
    if result.files:
        benching.print_tuned([result], console())
        print("later compiles on this machine use these kernels; forerun tune --forget drops them")
    return 0


def _tell(arguments: argparse.Namespace, console: Callable[[], Console], key: str | None = None) -> int:
    found = [each for each in all_tuned() if key is None or each.key == key]
    if arguments.json:
        print(json.dumps(benching.tuned_dict(found)))
    elif found:
        benching.print_tuned(found, console())
    else:
        print("nothing has been tuned")
    return 0


def _forgotten(arguments: argparse.Namespace, count: int) -> int:
    print(json.dumps({"forgotten": count}) if arguments.json else f"dropped the choices for {count} kernels")
    return 0


def _options(arguments: argparse.Namespace) -> Options:
    turns = require_integer("turns", arguments.turns, least=1)
    context = require_integer("context", arguments.context, least=1)
    return Options(tuple(require_integer("rows", each, least=1) for each in arguments.rows), context, turns)


def _generated(arguments: argparse.Namespace, target: str, opening: Opening, progress: Progress) -> Generated:
    resolve_arithmetic(arguments.arithmetic, target, arguments.dtype)
    return benching.generated(
        arguments.model, target, arguments.dtype, arguments.max_length, progress, opening, arguments.arithmetic
    )

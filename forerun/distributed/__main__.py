"""Runs a command of `forerun` on several processes, which `torchrun` has started.

    torchrun --nproc-per-node 2 -m forerun.distributed generate --attention 1 --ffn 1 demo --prompt "Hello."

The other options are those of `forerun generate` and `forerun verify`.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist

from forerun import cli
from forerun.build import Opening
from forerun.commands import DEFAULT_STRATEGY
from forerun.distributed.driver import Driver
from forerun.distributed.joining import TARGET, join
from forerun.distributed.layout import AUTO, Layout
from forerun.distributed.timeline import svg
from forerun.errors import DistributedError, InvalidOptionError, first_sentence
from forerun.progress import open_progress
from forerun.storage import expanded, write_atomically
from forerun.tool import Parser, run_tool

COMMANDS = ("generate", "verify")
RANK, WORLD = "RANK", "WORLD_SIZE"
"""What torchrun tells a process."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit codes are those of `forerun`. Each rank but the first names itself in its errors."""
    rank, given = os.environ.get(RANK, "0"), sys.argv[1:] if argv is None else argv
    if rank != "0":
        given = [each for each in given if each != "--json"]  # one object is printed, by the first rank
        return run_tool(f"forerun.distributed, rank {rank}", _run, given)
    return run_tool("forerun.distributed", _run, argv)


def _run(arguments: Sequence[str]) -> int:
    own = _parser()
    given, rest = own.parse_known_args(arguments)
    options = cli.parser().parse_args([given.command, *rest])
    layout = Layout(given.attention, given.ffn, AUTO if given.groups == "auto" else _count(given.groups))
    command = f"torchrun --nproc-per-node {layout.world} -m forerun.distributed {given.command} ..."
    if RANK not in os.environ:
        raise InvalidOptionError(f"this is one process: start {layout.world} with {command}")
    numbers = [os.environ.get(name, "") for name in (RANK, WORLD)]
    if not all(each.isdecimal() for each in numbers):
        raise InvalidOptionError(f"{RANK} and {WORLD} are not what torchrun sets ({', '.join(numbers)}): use {command}")
    if int(numbers[1]) != layout.world:
        raise InvalidOptionError(
            f"{layout.attention} attention ranks and {layout.ffn} feed-forward ranks are {layout.world}, and torchrun "
            f"has started {numbers[1]} processes: use {command}"
        )
    timeline = _timeline(given.timeline, layout)
    with ExitStack() as stack:
        joined = cache(lambda: _joined(stack, options, layout))
        options.compiled = lambda _: joined()
        code = options.run(options)
        if timeline is not None:
            driver = cast(Driver, joined().executable)
            write_atomically(timeline, svg(driver.schedule(driver.last)))
        return code


def _parser() -> Parser:
    own = Parser(
        prog="torchrun --nproc-per-node WORLD -m forerun.distributed",
        description="Runs a command of forerun on several processes: attention ranks first, then feed-forward ranks.",
        epilog="All other options are those of forerun generate and forerun verify.",
        allow_abbrev=False,
    )
    own.add_argument("command", choices=COMMANDS, help="what to do")
    own.add_argument("--attention", type=int, default=1, help="the ranks that attend, each to some of the sequences")
    own.add_argument("--ffn", type=int, default=1, help="the ranks that share the feed-forward part")
    own.add_argument("--groups", default="auto", help="the groups that an attention rank's rows are divided into")
    own.add_argument(
        "--timeline",
        metavar="FILE",
        help="draw when each part is predicted to work in a step like the last one, as SVG",
    )
    return own


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InvalidOptionError(f"--groups must be auto or a number from 1, not {text}.")
    return int(text)


def _timeline(path: str | None, layout: Layout) -> Path | None:
    """Where to draw the timeline, if it can be drawn and written there."""
    if path is None or int(os.environ[RANK]):
        return None
    if layout.groups != AUTO:
        raise InvalidOptionError("--timeline draws what the choice of groups is predicted from: leave out --groups.")
    if not expanded(path).parent.is_dir():
        raise InvalidOptionError(f"--timeline {path} is in a folder that does not exist: make it first.")
    return expanded(path)


def _joined(stack: ExitStack, parsed: Namespace, layout: Layout) -> Any:
    """Compiles this rank's part. On a rank other than the first, it serves, and then the process ends."""
    if parsed.target not in ("auto", TARGET):
        raise InvalidOptionError(f"several processes run on the target {TARGET}; leave out --target {parsed.target}.")
    try:
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"the processes do not find each other ({first_sentence(error)}): start them with torchrun."
        ) from error
    stack.callback(dist.destroy_process_group)
    model = stack.enter_context(
        join(
            parsed.model,
            layout,
            parsed.strategy or DEFAULT_STRATEGY,
            parsed.dtype,
            parsed.max_length,
            open_progress(quiet=parsed.quiet or parsed.json),
            opening=Opening(None if parsed.no_generation_config else "model", parsed.trust_remote_code),
            arithmetic=parsed.arithmetic,
        )
    )
    if model is None:
        sys.exit(0)
    return model


if __name__ == "__main__":
    sys.exit(main())

"""What each command of `forerun` does with its parsed options.

Nothing is imported before it is needed, so that bad options are refused and Ctrl-C takes effect at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from forerun.errors import InvalidOptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

NO_TOKENIZER = "The model has no tokenizer; give the prompt as --token-ids."

DEFAULT_STRATEGY = "tree_spec"
WIDEST = 10_000
"""Columns of an output that is not a terminal."""


def run_demo(arguments: argparse.Namespace) -> int:
    from forerun.comparison import Comparison
    from forerun.prompt_input import prompt_text

    check(arguments, takes_bundles=True)
    text = prompt_text(arguments.prompt, "--prompt")
    _request(arguments)
    model = arguments.compiled(arguments)
    prompt = _encoded(model, text)
    streamer = None if arguments.json else _streamer(model)
    out = _console()
    if not arguments.json:
        out.print(f"{text}\n", style="bold")
    from forerun.schedules import with_strategy

    plain = with_strategy(model, "autoregressive")
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "return_logits": True, "do_sample": False}
    results = {"tree_spec": model.generate(prompt, streamer=streamer, **options)}
    results["autoregressive"] = plain.generate(prompt, **options)
    fast, slow = results.values()
    identical = fast.has_bits_of(slow)
    rows = {name: _figures(each.stats) for name, each in results.items()}
    compared = Comparison(fast.stats, slow.stats)
    if arguments.json:
        shown = {"text": fast.text, "strategies": rows, "bits_identical": identical, **compared.to_dict()}
        print(json.dumps(shown))
        return 0 if identical else 1
    from rich.table import Table

    table = Table("strategy", "tokens", "steps", "accepted length", "tokens per second")
    for name, each in rows.items():
        cells = (each["tokens"], each["steps"], f"{each['accepted_length']:.2f}", f"{each['tokens_per_second']:.1f}")
        table.add_row(name, *(str(cell) for cell in cells))
    out.print()
    out.print(table)
    if compared.note is not None:
        print(compared.note)
    print(f"bits identical: {'yes' if identical else 'no'}")
    return 0 if identical else 1


def run_generate(arguments: argparse.Namespace) -> int:
    from forerun.prompt_input import given_grammar, prompt_file, prompt_text, token_ids

    check(arguments, takes_bundles=True)
    ids = None if arguments.token_ids is None else token_ids(arguments.token_ids)
    request = _request(arguments, ids or ())
    text, prompts = "", arguments.prompt or [""]
    if len(prompts) > 1:
        raise InvalidOptionError(
            f"--prompt is given {len(prompts)} times: give one; in Python, model.generate takes several prompts"
        )
    if ids is None:
        file = arguments.prompt_file
        given = (prompts[0], "--prompt") if file is None else (prompt_file(file), f"The prompt file {file}")
        text = prompt_text(*given)
        require_tokenizer(arguments.model)
    grammar = given_grammar(arguments.json_schema, arguments.regex, arguments.grammar)
    model = arguments.compiled(arguments)
    prompt = _encoded(model, text, arguments.raw) if ids is None else ids
    stream = not arguments.json and model.tokenizer is not None
    result = model.generate(
        prompt,
        max_new_tokens=request.max_new_tokens,
        do_sample=arguments.do_sample,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        grammar=grammar,
        streamer=_streamer(model) if stream else None,
    )
    if arguments.json:
        told = {"token_ids": result.token_ids, "text": result.text, "finish_reason": result.finish_reason}
        print(json.dumps(told | _figures(result.stats)))
    elif not stream:
        print(",".join(str(each) for each in result.token_ids))
    if grammar is not None and result.finish_reason == "length":
        print("note: the text ends before the grammar does: give a larger --max-new-tokens", file=sys.stderr)
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from forerun.codegen.backends import BACKENDS
    from forerun.compile_options import resolve_target
    from forerun.progress import open_progress
    from forerun.runtime.certify import certify, require_cases
    from forerun.runtime.certify_loop import certify_loop
    from forerun.runtime.certify_sessions import certify_sessions

    check(arguments, takes_bundles=True)
    cases, seed = require_cases(arguments.cases, arguments.seed)
    if not BACKENDS[resolve_target(arguments.target, arguments.dtype)].exact:
        raise InvalidOptionError(
            f"The target {arguments.target} is not bit-exact, so there is nothing to verify: choose another target."
        )
    model = arguments.compiled(arguments)
    if not BACKENDS[model.target].exact:
        raise InvalidOptionError(
            f"{arguments.model} runs on {model.target}, which is not bit-exact: nothing to verify."
        )
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    with progress.counted("verify") as counted:
        report = certify(model.executable, cases, seed, counted)
    texts = max(1, cases // 8)
    with progress.counted("verify sessions") as counted:
        reports = {"sessions": certify_sessions(model.engine, model.drafter, model.policy, texts, seed, counted)}
    if model.on_device is not None:
        with progress.counted("verify the loop on the device") as counted:
            loop = certify_loop(model.executable, texts, seed, counted)
        reports |= {} if loop is None else {"loop": loop}
    if arguments.json:
        print(json.dumps(report.to_dict() | {name: each.to_dict() for name, each in reports.items()}))
    else:
        print(report, *reports.values(), sep="\n")
    return 0 if report.exact and all(each.exact for each in reports.values()) else 1


def run_dump(arguments: argparse.Namespace) -> int:
    from forerun.compile_options import require_folder, resolve_arithmetic, resolve_target

    if arguments.diff is not None:
        from forerun.dump_difference import print_difference

        return print_difference(arguments.model, arguments.diff, arguments.json)
    if arguments.model is None:
        raise InvalidOptionError("Give the model to dump, or --diff and two dumps.")
    check(arguments)
    folder = require_folder("--out", arguments.out)

    from forerun import dumping
    from forerun.build import lower, warn_of_length
    from forerun.dump_folder import DumpFolder
    from forerun.progress import open_progress

    derived = [*dumping.draft_passes(arguments.draft), *dumping.part_passes(arguments.part, arguments.draft)]
    selection = dumping.selected(arguments.full, arguments.after_change, arguments.before, arguments.after)
    target = resolve_target(arguments.target, arguments.dtype)
    dumping.require_kernels(target, arguments.asm, arguments.no_kernels)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    arithmetic = resolve_arithmetic(arguments.arithmetic, target, arguments.dtype)
    dump = DumpFolder.of(folder, selection)
    lowered = lower(
        arguments.model,
        arguments.dtype,
        arguments.max_length,
        progress,
        derived,
        dump.observe,
        opening(arguments),
        arithmetic=arithmetic,
    )
    warn_of_length(lowered.capped)
    kernels = None
    if not arguments.no_kernels:
        kernels = dumping.dump_kernels(lowered, target, arguments.dtype, dump, progress, arguments.asm)
    names = ("dtype", "arithmetic", "max_length", "draft", "part")
    dump.finish(arguments.model, {name: getattr(arguments, name) for name in names} | {"target": target})
    netron = arguments.netron is not None
    graph = dumping.graph_for_netron(arguments, opening(arguments), progress) if netron else None
    if arguments.json:
        listed = {} if kernels is None else {"kernels": kernels.resources, "choices": kernels.choices}
        shown = {} if graph is None else {"netron": str(graph)}
        print(json.dumps({"folder": str(folder), "passes": dump.passes, **listed, **shown}))
        return 0
    console = _console()
    if arguments.residual:
        dumping.print_residual(lowered.module, console)
    dumping.print_passes(lowered, console)
    if kernels is not None:
        dumping.print_kernels(kernels, console)
    print(f"written to {folder}")
    if graph is not None:
        print(f"open {graph} in Netron (https://netron.app)")
    return 0


def run_bench(arguments: argparse.Namespace) -> int:
    from forerun.tuning_commands import bench

    check(arguments, takes_bundles=arguments.override is None and not arguments.asm)
    return bench(arguments, opening(arguments), _console)


def run_tune(arguments: argparse.Namespace) -> int:
    from forerun.tuning_commands import tune

    check(arguments)
    return tune(arguments, opening(arguments), _console)


def run_export(arguments: argparse.Namespace) -> int:
    from forerun.exporting import Destination

    check(arguments)
    named = {name: getattr(arguments, name) for name in ("format", "force", "mcpu", "mtriple")}
    Destination.of(arguments.out, **named)
    from forerun.compiler import export
    from forerun.progress import open_progress

    folder = export(
        arguments.model,
        arguments.out,
        strategy=arguments.strategy,
        dtype=arguments.dtype,
        max_length=arguments.max_length,
        progress=open_progress(quiet=arguments.quiet or arguments.json),
        opening=opening(arguments),
        arithmetic=arguments.arithmetic,
        **named,
    )
    from forerun.artifacts.bundle import Bundle

    manifest = Bundle(folder).manifest
    size = sum(each.bytes for each in manifest.files.values())
    if arguments.json:
        print(json.dumps({"folder": str(folder), "bytes": size, "notes": manifest.notes}))
        return 0
    print(f"written to {folder}: {len(manifest.files) + 1} files, {size / 1e6:.0f} MB")
    for note in (manifest.exactness.promise, *manifest.notes):
        print(f"note: {note}")
    return 0


def run_plan(arguments: argparse.Namespace) -> int:
    from dataclasses import fields

    from forerun.planning.planner import PlanOptions, plan

    options = PlanOptions(**{each.name: getattr(arguments, each.name) for each in fields(PlanOptions)})
    planned = plan(arguments.model, arguments.hardware, options)
    if arguments.json:
        print(json.dumps(planned.to_dict()))
        return 0
    from rich.table import Table

    from forerun.planning.report import SERVINGS

    table = Table(planned.model, *SERVINGS)
    for row in planned.rows():
        table.add_row(*row)
    _console().print(table)
    print(planned.verdict())
    return 0


def check(arguments: argparse.Namespace, takes_bundles: bool = False) -> None:
    """Refuses what can be refused without loading the model."""
    from forerun.compile_options import check_options
    from forerun.strategies import draft_sources, resolve_strategy

    sources = list(draft_sources(resolve_strategy(arguments.strategy or DEFAULT_STRATEGY).drafters))
    if not takes_bundles or not _is_bundle(arguments.model):
        sources.append(arguments.model)
    check_options(sources, arguments.dtype, arguments.target, arguments.max_length)


def _request(arguments: argparse.Namespace, prompt: Sequence[int] = ()) -> Any:
    """Returns the generation request, checked as far as possible before the prompt is encoded."""
    from forerun.runtime.options import require_room
    from forerun.runtime.request import Request
    from forerun.runtime.sampling import SamplingSettings

    names = ("do_sample", "temperature", "top_k", "top_p", "seed")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name, None) is not None}
    given.setdefault("do_sample", True)  # whether a text is sampled if nobody says so, its model says
    request = Request(list(prompt), arguments.max_new_tokens, SamplingSettings(**given))
    from forerun.compile_options import DEFAULT_LENGTH

    require_room(max(1, len(prompt)), request.max_new_tokens, arguments.max_length or DEFAULT_LENGTH)
    return request


def compiled(arguments: argparse.Namespace) -> Any:
    """Compiles the model that the arguments name, or loads it if it is a bundle."""
    from forerun.progress import open_progress

    progress = open_progress(quiet=arguments.quiet or arguments.json)
    if _is_bundle(arguments.model):
        from forerun.loading import load

        _require_no_compiling(arguments)
        return load(arguments.model, arguments.strategy, progress=progress)
    from forerun.compiler import compile

    return compile(
        arguments.model,
        strategy=arguments.strategy or DEFAULT_STRATEGY,
        dtype=arguments.dtype,
        target=arguments.target,
        max_length=arguments.max_length,
        progress=progress,
        generation_config=None if arguments.no_generation_config else "model",
        trust_remote_code=arguments.trust_remote_code,
        arithmetic=arguments.arithmetic,
    )


def opening(arguments: argparse.Namespace) -> Any:
    """Returns what opening a source depends on besides the source."""
    from forerun.build import Opening

    return Opening(None if arguments.no_generation_config else "model", arguments.trust_remote_code)


def _console() -> Any:
    """Returns a console that shows text as it is: square brackets and colons are not markup.

    Where the output is not a terminal, a line is as wide as it has to be.
    """
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise  # instead of rich's exit code: the tool has its own

    console = Plain(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDEST
    return console


def _is_bundle(model: str) -> bool:
    from forerun.compile_options import DEMO
    from forerun.storage import expanded, is_bundle

    return model != DEMO and is_bundle(expanded(model))


def _require_no_compiling(arguments: argparse.Namespace) -> None:
    """Refuses options that say how to compile, for a bundle, which was compiled when it was exported."""
    from forerun.compile_options import AUTO

    defaults = {"dtype": "float32", "target": AUTO, "max_length": None, "arithmetic": AUTO}
    for name, default in defaults.items():
        if getattr(arguments, name) != default:
            raise InvalidOptionError(
                f"{arguments.model} is a bundle, which was compiled when it was exported: leave out "
                f"--{name.replace('_', '-')}, or export the model again."
            )


def require_tokenizer(model: str) -> None:
    """Refuses a text for a model whose files hold no tokenizer, before anything is compiled."""
    if _is_bundle(model):
        return  # reading it takes a moment, and says so
    from forerun.compile_options import located
    from forerun.frontends.directory import existing, holds_tokenizer

    if not holds_tokenizer(existing(located(model))):
        raise InvalidOptionError(NO_TOKENIZER)


def _encoded(model: Any, text: str, raw: bool = False) -> list[int]:
    from forerun.chat import encode_chat

    if model.tokenizer is None:
        raise InvalidOptionError(NO_TOKENIZER)
    return model.tokenizer.encode(text) if raw else encode_chat(model.tokenizer, text)


def _streamer(model: Any) -> Any:
    from forerun.streaming import PrintedText

    return PrintedText(model.tokenizer)


def _figures(stats: Any) -> dict[str, Any]:
    return {
        "tokens": stats.tokens,
        "steps": stats.steps,
        "accepted_length": stats.accepted_length,
        "tokens_per_second": stats.tokens_per_second,
        "prefill_seconds": stats.prefill_seconds,
        "decode_seconds": stats.decode_seconds,
    }

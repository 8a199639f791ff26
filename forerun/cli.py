"""The command line: forerun demo | generate | verify | dump.

Nothing is imported before it is needed, so that bad options are refused and Ctrl-C takes effect at once.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from forerun.errors import ForerunError, InvalidOptionError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DEMO_PROMPT = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle, then list its three main events."
)
NO_TOKENIZER = "The model has no tokenizer; give the prompt as --token-ids."

WIDEST = 10_000
"""Columns of an output that is not a terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit codes are those of `forerun.tool`, and 1 for a broken contract."""
    try:
        from forerun.tool import run_tool

        return run_tool("forerun", _run, argv)
    except KeyboardInterrupt:  # during that import
        return 130


def _run(arguments: Sequence[str]) -> int:
    from forerun.option_names import with_options
    from forerun.tool import plain_warnings

    parsed = parser().parse_args(arguments)
    try:
        with plain_warnings("forerun", lambda text: with_options(text, vars(parsed))):
            return parsed.run(parsed)
    except ForerunError as error:
        error.args = (with_options(str(error), vars(parsed)),)
        raise


def parser() -> argparse.ArgumentParser:
    """Returns the parser for the options of all commands, with their defaults."""
    from forerun import __version__
    from forerun.compile_options import AUTO, DEFAULT_LENGTH, targets
    from forerun.strategies import DESCRIPTIONS, strategy_names
    from forerun.tool import Parser

    named = "".join(f"\n  {name:18}{DESCRIPTIONS[name]}" for name in strategy_names())
    strategies = f"strategies, all of which give the same text:{named}"
    root = Parser(
        prog="forerun", description="The same bits, in fewer steps.", epilog=f"{strategies}\n\nforerun COMMAND --help "
        "lists the options of a command, with their defaults."
    )  # fmt: skip
    root.add_argument("--version", action="version", version=f"forerun {__version__}")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="compile SmolLM2-135M-Instruct, stream an answer, compare with plain decoding"
    )
    demo.add_argument("--prompt", default=DEMO_PROMPT, help="the question")
    demo.add_argument("--max-new-tokens", type=int, default=192, help="the largest number of tokens in the answer")
    demo.set_defaults(run=run_demo, model="demo", strategy="tree_spec")

    generate = commands.add_parser("generate", help="generate text", epilog=strategies)
    _add_model(generate)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the prompt; in the model's chat template, unless --raw is given")
    source.add_argument("--prompt-file", help="a text file that holds the prompt, or - for standard input")
    source.add_argument("--token-ids", help="the prompt as comma-separated token ids")
    generate.add_argument("--raw", action="store_true", help="do not use the chat template")
    generate.add_argument("--strategy", default="tree_spec", help="the decoding strategy; see below")
    generate.add_argument("--max-new-tokens", type=int, default=128, help="the largest number of new tokens")
    generate.add_argument("--do-sample", action="store_true", help="sample; the next three options need it")
    generate.add_argument("--temperature", type=float, default=1.0, help="the divisor of the logits")
    generate.add_argument("--top-k", type=int, help="sample from the K likeliest tokens (default: all)")
    generate.add_argument("--top-p", type=float, help="sample from the likeliest tokens that sum to P (default: all)")
    generate.add_argument("--seed", type=int, default=0, help="the same prompt, settings and seed give the same text")
    generate.set_defaults(run=run_generate)

    verify = commands.add_parser("verify", help="certify the exactness contract on random trees, slots and chunkings")
    _add_model(verify)
    verify.add_argument("--cases", type=int, default=200, help="the number of random cases")
    verify.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    verify.set_defaults(run=run_verify, strategy="autoregressive")

    dump = commands.add_parser("dump", help="write the IR after every pass and the source of every kernel")
    _add_model(dump)
    dump.add_argument("--out", default="dumps", help="the folder to write to")
    dump.add_argument("--residual", action="store_true", help="show the residual branches of the step")
    dump.add_argument(
        "--draft",
        metavar="PASS",
        help="also derive a draft, by early-exit{layers=N} or skip-layers{branches=1,2,3}, and say which of its values "
        "a verifying step can use (default: none)",
    )
    dump.add_argument("--no-kernels", action="store_true", help="write only the IR")
    dump.set_defaults(run=run_dump, strategy="autoregressive")

    known = targets()
    for command in (demo, generate, verify, dump):
        command.add_argument("--dtype", default="float32", help=f"the weight dtype: {_dtypes(known)}")
        command.add_argument("--target", default=AUTO, help=f"{', '.join(known)}; {AUTO} is the best available")
        positions = f"the largest number of positions in a sequence (default: {DEFAULT_LENGTH}, or the model's limit)"
        command.add_argument("--max-length", type=int, help=positions)
        trust = "run the code in the model's directory"
        command.add_argument("--trust-remote-code", action="store_true", help=trust)
        without = "ignore fields of the model's generation config that forerun does not apply"
        command.add_argument("--no-generation-config", action="store_true", help=without)
        command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        command.add_argument("--quiet", action="store_true", help="do not show progress")
    return root


def _dtypes(targets: dict[str, tuple[str, ...]]) -> str:
    """Lists the weight dtypes, each with its targets unless all have it."""
    from forerun.compile_options import AUTO

    having = {dtype: [name for name, own in targets.items() if dtype in own] for dtype in targets[AUTO]}
    return ", ".join(
        dtype if len(names) == len(targets) else f"{dtype} ({', '.join(names[1:])} only)"
        for dtype, names in having.items()
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="a directory that transformers can load, a GGUF or .mlir file, or 'demo'")


def run_demo(arguments: argparse.Namespace) -> int:
    from forerun.comparison import Comparison
    from forerun.prompt_input import prompt_text

    _check(arguments)
    text = prompt_text(arguments.prompt, "--prompt")
    _request(arguments)
    model = _compiled(arguments)
    prompt = _encoded(model, text)
    streamer = None if arguments.json else _streamer(model)
    out = _console()
    if not arguments.json:
        out.print(f"{text}\n", style="bold")
    from forerun.compiler import with_strategy

    plain = with_strategy(model, "autoregressive")
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "return_logits": True}
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
    from forerun.prompt_input import prompt_file, prompt_text, token_ids

    _check(arguments)
    ids = None if arguments.token_ids is None else token_ids(arguments.token_ids)
    request = _request(arguments, ids or ())
    text = ""
    if ids is None:
        file = arguments.prompt_file
        given = (arguments.prompt, "--prompt") if file is None else (prompt_file(file), f"The prompt file {file}")
        text = prompt_text(*given)
        _require_tokenizer(arguments.model)
    model = _compiled(arguments)
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
        streamer=_streamer(model) if stream else None,
    )
    if arguments.json:
        print(json.dumps({"token_ids": result.token_ids, "text": result.text, **_figures(result.stats)}))
    elif not stream:
        print(",".join(str(each) for each in result.token_ids))
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    from forerun.codegen.backends import BACKENDS
    from forerun.compile_options import resolve_target
    from forerun.progress import open_progress
    from forerun.runtime.certify import certify, require_cases
    from forerun.runtime.certify_loop import certify_loop

    _check(arguments)
    cases, seed = require_cases(arguments.cases, arguments.seed)
    if not BACKENDS[resolve_target(arguments.target, arguments.dtype)].exact:
        raise InvalidOptionError(
            f"The target {arguments.target} is not bit-exact, so there is nothing to verify: choose another target."
        )
    model = _compiled(arguments)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    with progress.counted("verify") as counted:
        report = certify(model.executable, cases, seed, counted)
    loop = None
    if model.on_device is not None:
        with progress.counted("verify the loop on the device") as counted:
            loop = certify_loop(model.executable, max(1, cases // 10), seed, counted)
    if arguments.json:
        print(json.dumps(report.to_dict() | ({} if loop is None else {"loop": loop.to_dict()})))
    else:
        print(report if loop is None else f"{report}\n{loop}")
    return 0 if report.exact and (loop is None or loop.exact) else 1


def run_dump(arguments: argparse.Namespace) -> int:
    from forerun.compile_options import require_folder, resolve_target

    _check(arguments)
    folder = require_folder("--out", arguments.out)

    from forerun import dumping
    from forerun.build import lower, warn_of_length
    from forerun.progress import open_progress

    draft = dumping.draft_passes(arguments.draft)
    target = resolve_target(arguments.target, arguments.dtype)
    if not arguments.no_kernels:
        dumping.require_kernels(target)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    lowered = lower(
        arguments.model, arguments.dtype, arguments.max_length, folder, progress, draft, _opening(arguments)
    )
    warn_of_length(lowered.capped)
    kernels = None
    if not arguments.no_kernels:
        kernels = dumping.dump_kernels(lowered, target, arguments.dtype, folder, progress)
    if arguments.json:
        passes = [
            {"name": r.name, "seconds": r.seconds, "before": r.before, "after": r.after, "notes": r.notes}
            for r in lowered.records
        ]
        listed = {} if kernels is None else {"kernels": kernels.resources, "choices": kernels.choices}
        print(json.dumps({"folder": str(folder), "passes": passes, **listed}))
        return 0
    console = _console()
    if arguments.residual:
        dumping.print_residual(lowered.module, console)
    dumping.print_passes(lowered, console)
    if kernels is not None:
        dumping.print_kernels(kernels, console)
    print(f"written to {folder}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Refuses what can be refused without loading the model."""
    from forerun.compile_options import check_options
    from forerun.strategies import draft_sources, resolve_strategy

    sources = [arguments.model, *draft_sources(resolve_strategy(arguments.strategy).drafters)]
    check_options(sources, arguments.dtype, arguments.target, arguments.max_length)


def _request(arguments: argparse.Namespace, prompt: Sequence[int] = ()) -> Any:
    """Returns the generation request, checked as far as possible before the prompt is encoded."""
    from forerun.runtime.generation import Request
    from forerun.runtime.options import require_room
    from forerun.runtime.sampling import SamplingSettings

    names = ("do_sample", "temperature", "top_k", "top_p", "seed")
    given = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    request = Request(list(prompt), arguments.max_new_tokens, SamplingSettings(**given))
    from forerun.compile_options import DEFAULT_LENGTH

    require_room(max(1, len(prompt)), request.max_new_tokens, arguments.max_length or DEFAULT_LENGTH)
    return request


def _compiled(arguments: argparse.Namespace) -> Any:
    """Compiles the model that the arguments name."""
    from forerun.compiler import compile
    from forerun.progress import open_progress

    return compile(
        arguments.model,
        strategy=arguments.strategy,
        dtype=arguments.dtype,
        target=arguments.target,
        max_length=arguments.max_length,
        progress=open_progress(quiet=arguments.quiet or arguments.json),
        generation_config=None if arguments.no_generation_config else "model",
        trust_remote_code=arguments.trust_remote_code,
    )


def _opening(arguments: argparse.Namespace) -> Any:
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


def _require_tokenizer(model: str) -> None:
    """Refuses a text for a model whose files hold no tokenizer, before anything is compiled."""
    from forerun.compile_options import located
    from forerun.frontends.directory import existing, holds_tokenizer

    if not holds_tokenizer(existing(located(model))):
        raise InvalidOptionError(NO_TOKENIZER)


def _encoded(model: Any, text: str, raw: bool = False) -> list[int]:
    from forerun.frontends.tokenizer import encode_chat

    if model.tokenizer is None:
        raise InvalidOptionError(NO_TOKENIZER)
    return model.tokenizer.encode(text) if raw else encode_chat(model.tokenizer, text)


def _streamer(model: Any) -> Any:
    from transformers import TextStreamer

    return TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _figures(stats: Any) -> dict[str, Any]:
    return {
        "tokens": stats.tokens,
        "steps": stats.steps,
        "accepted_length": stats.accepted_length,
        "tokens_per_second": stats.tokens_per_second,
        "prefill_seconds": stats.prefill_seconds,
        "decode_seconds": stats.decode_seconds,
    }


if __name__ == "__main__":
    sys.exit(main())

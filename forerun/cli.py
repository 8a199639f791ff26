"""The command line: forerun demo | generate | verify | dump. Exit codes: 0 done, 1 a contract broken, 2 bad input."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forerun.errors import ForerunError, InvalidOptionError, SourceNotFoundError
from forerun.progress import open_progress

DEMO_PROMPT = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle, then list its three main events."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a `ForerunError` becomes one sentence on stderr and exit code 2."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except ForerunError as error:
        if getattr(arguments, "json", False):
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        print(f"forerun: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(prog="forerun", description="The same bits, in fewer steps.")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="compile SmolLM2-135M-Instruct, stream an answer, compare with plain decoding"
    )
    demo.add_argument("--prompt", default=DEMO_PROMPT)
    demo.add_argument("--max-new-tokens", type=int, default=192)
    demo.set_defaults(run=run_demo, model="demo", strategy="tree_spec")

    generate = commands.add_parser("generate", help="generate text")
    _add_model(generate)
    source = generate.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the prompt's text; through the model's chat template unless --raw")
    source.add_argument("--prompt-file", type=Path, help="a text file that holds the prompt")
    source.add_argument("--token-ids", help="the prompt as comma-separated token ids")
    generate.add_argument("--raw", action="store_true", help="no chat template")
    generate.add_argument("--strategy", default="tree_spec")
    generate.add_argument("--max-new-tokens", type=int, default=128)
    generate.add_argument("--do-sample", action="store_true")
    generate.add_argument("--temperature", type=float, default=1.0)
    generate.add_argument("--top-k", type=int)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--seed", type=int, default=0)
    generate.set_defaults(run=run_generate)

    verify = commands.add_parser("verify", help="certify the exactness contract on random trees, slots and chunkings")
    _add_model(verify)
    verify.add_argument("--cases", type=int, default=200)
    verify.add_argument("--seed", type=int, default=0)
    verify.set_defaults(run=run_verify)

    dump = commands.add_parser("dump", help="write the IR after every pass and the source of every kernel")
    _add_model(dump)
    dump.add_argument("--out", type=Path, default=Path("dumps"), help="the folder to write to (default: dumps)")
    dump.add_argument("--residual", action="store_true", help="show the residual branches of the step")
    dump.add_argument(
        "--draft",
        metavar="PASS",
        help="derive a draft as well, by early-exit{layers=N} or skip-layers{branches=1,2,3}, and say what of it a "
        "verifying step can use",
    )
    dump.add_argument("--no-kernels", action="store_true", help="the IR alone")
    dump.set_defaults(run=run_dump)

    for command in (demo, generate, verify, dump):
        dtypes = "how matrices are kept: float32, bfloat16, native (cpu) or float16 (cuda)"
        command.add_argument("--dtype", default="float32", help=dtypes)
        command.add_argument("--target", default="auto", help="cpu, cuda, reference, or auto: the best there is")
        command.add_argument("--max-length", type=int, default=2048, help="positions a sequence may have")
        command.add_argument("--json", action="store_true", help="one JSON object on stdout, nothing else")
        command.add_argument("--quiet", action="store_true", help="no progress")
    return root


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="a directory that transformers can load, a GGUF file, or 'demo' for SmolLM2")


def run_demo(arguments: argparse.Namespace) -> int:
    from forerun.compiler import with_strategy

    model = _compiled(arguments)
    prompt = _encoded(model, arguments.prompt)
    streamer = None if arguments.json else _streamer(model)
    out = Console()
    if not arguments.json:
        out.print(f"[bold]{arguments.prompt}[/bold]\n", highlight=False)
    plain = with_strategy(model, "autoregressive")
    options: dict[str, Any] = {"max_new_tokens": arguments.max_new_tokens, "return_logits": True}
    results = {"tree_spec": model.generate(prompt, streamer=streamer, **options)}
    results["autoregressive"] = plain.generate(prompt, **options)
    fast, slow = results.values()
    identical = fast.has_bits_of(slow)
    rows = {name: _figures(each.stats) for name, each in results.items()}
    if arguments.json:
        print(json.dumps({"text": fast.text, "strategies": rows, "bits_identical": identical}))
        return 0 if identical else 1
    table = Table("strategy", "tokens", "steps", "accepted length", "tokens per second")
    for name, each in rows.items():
        cells = (each["tokens"], each["steps"], f"{each['accepted_length']:.2f}", f"{each['tokens_per_second']:.1f}")
        table.add_row(name, *(str(cell) for cell in cells))
    out.print()
    out.print(table)
    out.print(f"bits identical: {'yes' if identical else 'no'}")
    return 0 if identical else 1


def run_generate(arguments: argparse.Namespace) -> int:
    text = arguments.prompt if arguments.prompt_file is None else _read(arguments.prompt_file)
    model = _compiled(arguments)
    prompt = _encoded(model, text, arguments.raw) if arguments.token_ids is None else _token_ids(arguments.token_ids)
    stream = not arguments.json and model.tokenizer is not None
    result = model.generate(
        prompt,
        max_new_tokens=arguments.max_new_tokens,
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
    from forerun.runtime.certify import certify
    from forerun.runtime.certify_loop import certify_loop

    arguments.strategy = "autoregressive"
    model = _compiled(arguments)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    with progress.counted("verify") as counted:
        report = certify(model.executable, arguments.cases, arguments.seed, counted)
    loop = None
    if model.on_device is not None:
        with progress.counted("verify the loop on the device") as counted:
            loop = certify_loop(model.executable, max(1, arguments.cases // 10), arguments.seed, counted)
    if arguments.json:
        print(json.dumps(report.to_dict() | ({} if loop is None else {"loop": loop.to_dict()})))
    else:
        print(report if loop is None else f"{report}\n{loop}")
    return 0 if report.exact and (loop is None or loop.exact) else 1


def run_dump(arguments: argparse.Namespace) -> int:
    from forerun.codegen.triton.gpu import require_triton
    from forerun.compiler import generate_code, lower, resolve_target

    target = resolve_target(arguments.target, arguments.dtype)
    if target == "cuda" and not arguments.no_kernels:
        require_triton()
    draft = _draft_passes(arguments.draft)
    progress = open_progress(quiet=arguments.quiet or arguments.json)
    lowered = lower(_model_path(arguments.model), arguments.dtype, arguments.max_length, arguments.out, progress, draft)
    kernels = None
    if target == "cuda" and not arguments.no_kernels:
        kernels = _dump_triton(lowered, arguments.dtype, arguments.out, progress)
    elif not arguments.no_kernels:
        generate_code(lowered, target, arguments.out, progress)
    if arguments.json:
        passes = [
            {"name": r.name, "seconds": r.seconds, "before": r.before, "after": r.after, "notes": r.notes}
            for r in lowered.records
        ]
        listed = {} if kernels is None else {"kernels": kernels.resources, "choices": kernels.choices}
        print(json.dumps({"folder": str(arguments.out), "passes": passes, **listed}))
        return 0
    if arguments.residual:
        Console().print(_residual_table(lowered.module))
    table = Table("pass", "operations before", "after", "ms", "notes")
    for record in lowered.records:
        notes = "\n".join(each.removeprefix(f"{record.name}: ") for each in record.notes)
        table.add_row(record.name, str(record.before), str(record.after), f"{record.seconds * 1e3:.1f}", notes)
    Console().print(table)
    if kernels is not None:
        _print_triton(kernels)
    print(f"written to {arguments.out}")
    return 0


def _dump_triton(lowered: Any, dtype: str, folder: Path, progress: Any) -> Any:
    """Write the Triton sources, and compile them ahead of time; no GPU is needed."""
    from forerun.codegen import triton
    from forerun.compiler import STORAGES, limits_of

    with progress.stage("kernels"):
        step = triton.Lowering(lowered.module, storage=STORAGES[dtype], **limits_of(lowered)).step
        triton.write_sources(step, folder / "kernels")
        return triton.report(step)


def _print_triton(kernels: Any) -> None:
    """A line for each kernel and architecture, and the autotuner's choices."""
    table = Table("kernel", "sm", "block x rows", "warps", "stages", "registers", "shared bytes", "stack bytes")
    for each in kernels.resources:
        config = each["config"]
        divided = f"{config['block']} x {config['rows']}"
        cells = (each["kernel"], each["capability"], divided, config["warps"], config["stages"])
        table.add_row(*(str(cell) for cell in (*cells, each["registers"], each["shared"], each["stack"])))
    Console().print(table)
    if not kernels.choices:
        print("The autotuner has chosen nothing yet: it measures on a GPU.")
    for name, choice in kernels.choices.items():
        print(f"{name}: {choice}")


def _draft_passes(text: str | None) -> list[Any]:
    """The passes that derive a draft, and what of it a verifying step can use; none without a text."""
    from forerun.passes.early_exit import EarlyExit
    from forerun.passes.pipeline import parse_passes
    from forerun.passes.reuse_kv_cache import ReuseKVCache
    from forerun.passes.skip_layers import SkipLayers

    if text is None:
        return []
    passes = list(parse_passes(text))
    if len(passes) != 1 or not isinstance(passes[0], EarlyExit | SkipLayers):
        raise InvalidOptionError(
            f"--draft {text!r} derives no draft; use early-exit{{layers=N}} or skip-layers{{branches=1,2}}."
        )
    return [*passes, ReuseKVCache()]


def _residual_table(module: Any) -> Table | str:
    """A line for each branch of `@step`."""
    from forerun.passes.residual import summary

    branches = summary(module)
    if not branches:
        return "The step has no residual stream: no value is on every path from the tokens to the logits and added to."
    table = Table("branch", "layer", "kind", "kernels", "linears", "weights, millions")
    for number, each in enumerate(branches):
        cells = (each.layer, each.kind, each.kernels, each.linears, f"{each.weights / 1e6:.2f}")
        table.add_row(str(number), *(str(cell) for cell in cells))
    return table


def _compiled(arguments: argparse.Namespace) -> Any:
    """The model that the arguments name, compiled."""
    from forerun.compiler import compile

    return compile(
        _model_path(arguments.model),
        strategy=arguments.strategy,
        dtype=arguments.dtype,
        target=arguments.target,
        max_length=arguments.max_length,
        progress=open_progress(quiet=arguments.quiet or arguments.json),
    )


def _model_path(model: str) -> Path:
    from forerun.frontends.demo import demo_model

    return demo_model() if model == "demo" else Path(model)


def _encoded(model: Any, text: str, raw: bool = False) -> list[int]:
    from forerun.frontends.huggingface import encode_chat

    if model.tokenizer is None:
        raise InvalidOptionError("The model has no tokenizer; give the prompt as --token-ids.")
    return model.tokenizer.encode(text) if raw else encode_chat(model.tokenizer, text)


def _streamer(model: Any) -> Any:
    from transformers import TextStreamer

    return TextStreamer(model.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _token_ids(text: str) -> list[int]:
    try:
        return [int(each) for each in text.split(",")]
    except ValueError as error:
        raise InvalidOptionError(f"--token-ids {text!r} is no comma-separated list of numbers.") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceNotFoundError(
            f"The prompt file {path} cannot be read ({error.strerror}); check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidOptionError(
            f"The prompt file {path} is not UTF-8 text (byte {error.start}); convert it to UTF-8."
        ) from error


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

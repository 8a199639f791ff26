"""The command line: forerun demo | generate | serve | verify | dump | report | bench | tune | export | plan.

Nothing is imported before it is needed, so that bad options are refused and Ctrl-C takes effect at once.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from forerun import commands, report_command, serve_command
from forerun.errors import ForerunError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

DEMO_PROMPT = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle, then list its three main events."
)


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
    from argparse import BooleanOptionalAction

    from forerun import __version__
    from forerun.compile_options import AUTO
    from forerun.exporting import formats
    from forerun.strategies import DESCRIPTIONS, strategy_names
    from forerun.tool import Parser

    named = "".join(f"\n  {name:18}{DESCRIPTIONS[name]}" for name in strategy_names())
    strategies = f"strategies, all of which give the same text:{named}"
    root = Parser(
        prog="forerun", description="The same bits, in fewer steps.", epilog=f"{strategies}\n\nforerun COMMAND --help "
        "lists the options of a command, with their defaults."
    )  # fmt: skip
    root.set_defaults(compiled=commands.compiled)
    root.add_argument("--version", action="version", version=f"forerun {__version__}")
    known_commands = root.add_subparsers(required=True, metavar="COMMAND")

    demo = known_commands.add_parser(
        "demo", help="compile SmolLM2-135M-Instruct, stream an answer, compare with plain decoding"
    )
    demo.add_argument("--prompt", default=DEMO_PROMPT, help="the question")
    demo.add_argument("--max-new-tokens", type=int, default=192, help="the largest number of tokens in the answer")
    demo.set_defaults(run=commands.run_demo, model="demo", strategy="tree_spec")

    generate = known_commands.add_parser("generate", help="generate text", epilog=strategies)
    _add_model(generate)
    prompt = "the prompt; in the chat template, unless --raw is given"
    _add_prompt(generate, required=True, action="append", help=prompt)
    generate.add_argument("--strategy", help="the decoding strategy; see below (default: tree_spec, or the bundle's)")
    sample = "sample, as the next three options need, or not (default: as the model's generation config says)"
    generate.add_argument("--do-sample", action=BooleanOptionalAction, help=sample)
    generate.add_argument("--temperature", type=float, help="the divisor of the logits (default: 1)")
    generate.add_argument("--top-k", type=int, help="sample from the K likeliest tokens (default: all)")
    generate.add_argument("--top-p", type=float, help="sample from the likeliest tokens that sum to P (default: all)")
    generate.add_argument("--seed", type=int, default=0, help="the same prompt, settings and seed give the same text")
    grammar = generate.add_mutually_exclusive_group()
    grammar.add_argument("--json-schema", metavar="FILE", help="the text is JSON of this schema (default: any text)")
    grammar.add_argument("--regex", help="the text matches this regular expression (default: any text)")
    grammar.add_argument("--grammar", metavar="FILE", help="the text follows this Lark grammar (default: any text)")
    generate.set_defaults(run=commands.run_generate)

    serve = known_commands.add_parser("serve", help="serve the model over HTTP, with OpenAI's API", epilog=strategies)
    _add_model(serve)
    serve_command.add_serve(serve)

    verify = known_commands.add_parser(
        "verify", help="certify the exactness contract on random trees, slots and chunkings"
    )
    _add_model(verify)
    verify.add_argument("--cases", type=int, default=200, help="the number of random cases")
    verify.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    verify.set_defaults(run=commands.run_verify, strategy="autoregressive")

    dump = known_commands.add_parser("dump", help="write the IR after every pass and the source of every kernel")
    _add_model(dump, nargs="?")
    dump.add_argument("-o", "--out", default="dumps", help="the folder to write to, in place of a dump in it")
    dump.add_argument("--full", action="store_true", help="write all layers, also those that are alike")
    dump.add_argument("--after-change", action="store_true", help="only after passes that changed something")
    for when in ("before", "after"):
        dump.add_argument(
            f"--{when}",
            action="append",
            metavar="PASS",
            help=f"only {when} this pass; may be given several times (default: all)",
        )
    dump.add_argument(
        "--diff",
        nargs=2,
        metavar=("A", "B"),
        help="compare two dumps or files of dumps, and write nothing (default: dump MODEL)",
    )
    dump.add_argument(
        "--netron", metavar="FOLDER", help="also write an ONNX bundle, which Netron shows (default: none)"
    )
    dump.add_argument("--residual", action="store_true", help="show the residual branches of the step")
    dump.add_argument(
        "--draft",
        metavar="PASS",
        help="also derive a draft, by early-exit{layers=N}, skip-layers{branches=1,2,3} or parallel-layers{layers=N}, "
        "and say which of its values a verifying step can use (default: none)",
    )
    dump.add_argument(
        "--part",
        choices=("attention_part", "ffn_part"),
        help="of the step, keep only the part that one process of several has (default: the whole step)",
    )
    dump.add_argument("--asm", action="store_true", help="also write what each kernel is compiled to")
    dump.add_argument("--no-kernels", action="store_true", help="write only the IR")
    dump.set_defaults(run=commands.run_dump, strategy="autoregressive")

    report = known_commands.add_parser(
        "report", help="write a page of what compiling did, what the kernels take, and a generation", epilog=strategies
    )
    _add_report(report)

    _add_tuning(known_commands)

    export = known_commands.add_parser(
        "export", help="write a bundle that runs without the compiler", epilog=strategies
    )
    _add_model(export)
    export.add_argument("--out", required=True, help="the folder of the bundle: a new or an empty one")
    export.add_argument("--format", default="onnx", help=f"what the bundle is for: {', '.join(formats())}")
    export.add_argument("--strategy", default="tree_spec", help="the strategy that the bundle names; see below")
    export.add_argument("--force", action="store_true", help="replace the bundle in a folder that is not empty")
    export.add_argument("--mcpu", help="compile for another processor, by LLVM's name (tvm; default: this machine's)")
    export.add_argument("--mtriple", help="compile for another system, by LLVM's triple (tvm; default: this machine's)")
    export.set_defaults(run=commands.run_export, target=AUTO)

    _add_plan(
        known_commands.add_parser("plan", help="plan attention/FFN disaggregation on hardware described in a file")
    )

    for command in (demo, generate, serve, verify, dump, report, export):
        _add_compiling(command, takes_target=command is not export)
    return root


def _add_compiling(command: argparse.ArgumentParser, takes_target: bool = True) -> None:
    from forerun.codegen.backends import BFLOAT16, FLOAT32, INT8
    from forerun.compile_options import AUTO, DEFAULT_LENGTH, targets

    known = targets()
    command.add_argument("--dtype", default="float32", help=f"the weight dtype: {_dtypes(known)}")
    if takes_target:
        command.add_argument("--target", default=AUTO, help=f"{', '.join(known)}; {AUTO} is the best available")
    arithmetic = f"the narrowest numbers in products: {FLOAT32}, {BFLOAT16} or {INT8}; {AUTO}: as the weights are"
    command.add_argument("--arithmetic", default=AUTO, help=arithmetic)
    positions = f"the largest number of positions in a sequence (default: {DEFAULT_LENGTH}, or the model's limit)"
    command.add_argument("--max-length", type=int, help=positions)
    trust = "run the code in the model's directory"
    command.add_argument("--trust-remote-code", action="store_true", help=trust)
    without = "ignore the model's generation config, of which only the end tokens count"
    command.add_argument("--no-generation-config", action="store_true", help=without)
    command.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    command.add_argument("--quiet", action="store_true", help="do not show progress")


def _dtypes(targets: dict[str, tuple[str, ...]]) -> str:
    """Lists the weight dtypes, each with its targets unless all have it."""
    from forerun.compile_options import AUTO

    having = {dtype: [name for name, own in targets.items() if dtype in own] for dtype in targets[AUTO]}
    return ", ".join(
        dtype if len(names) == len(targets) else f"{dtype} ({', '.join(names[1:])} only)"
        for dtype, names in having.items()
    )


def _add_model(command: argparse.ArgumentParser, nargs: str | None = None) -> None:
    command.add_argument(
        "model", nargs=nargs, help="a directory that transformers can load, a GGUF, ONNX or .mlir file, or 'demo'"
    )


def _add_prompt(command: argparse.ArgumentParser, required: bool, **prompt: Any) -> None:
    """`prompt`: of the option --prompt."""
    source = command.add_mutually_exclusive_group(required=required)
    source.add_argument("--prompt", **prompt)
    source.add_argument("--prompt-file", help="a text file that holds the prompt, or - for standard input")
    source.add_argument("--token-ids", help="the prompt as comma-separated token ids")
    command.add_argument("--raw", action="store_true", help="do not use the chat template")
    command.add_argument("--max-new-tokens", type=int, default=128, help="the largest number of new tokens")


def _add_report(report: argparse.ArgumentParser) -> None:
    _add_model(report, nargs="?")
    report.add_argument("-o", "--out", default="report.html", help="the page; its data is written beside it as .json")
    prompt = "the prompt, in the chat template unless --raw is given (default: a short task)"
    _add_prompt(report, required=False, help=prompt)
    report.add_argument("--strategy", default=commands.DEFAULT_STRATEGY, help="the decoding strategy; see below")
    report.add_argument("--no-run", action="store_true", help="passes and kernels alone: no times, no generation")
    report.add_argument("--trace", metavar="FILE", help="also write a trace, which Perfetto opens (default: none)")
    report.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="compare two reports' data; give no MODEL (default: none)"
    )
    report.set_defaults(run=report_command.run_report)


def _add_tuning(known_commands: Any) -> None:
    bench = known_commands.add_parser("bench", help="time every kernel of a step against the machine's own limits")
    _add_model(bench)
    bench.add_argument("--kernel", metavar="NAME", help="only this kernel (default: all)")
    bench.add_argument(
        "--override",
        metavar="FILE",
        help="an edited file of the kernel, as forerun dump writes them: its bits are checked, then it is timed beside "
        "the generated kernel (default: none)",
    )
    bench.add_argument("--asm", action="store_true", help="print what the kernel is compiled to, and time nothing")
    bench.add_argument("--turns", type=int, default=15, help="how often each kernel is timed")
    bench.set_defaults(run=commands.run_bench, strategy="autoregressive")
    tune = known_commands.add_parser("tune", help="search for faster kernels with the same bits, and keep them")
    _add_model(tune, nargs="?")
    tune.add_argument("--kernel", metavar="NAME", help="only this kernel (default: all, the slowest first)")
    tune.add_argument("--budget", type=float, default=120.0, help="seconds that the search takes, about")
    tune.add_argument("--list", action="store_true", help="list what was found on this machine, and search nothing")
    tune.add_argument("--forget", action="store_true", help="drop what was found, for MODEL or for all")
    tune.set_defaults(run=commands.run_tune, strategy="autoregressive", turns=15)
    for command in (bench, tune):
        command.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="the numbers of rows of a step")
        command.add_argument("--context", type=int, default=128, help="tokens in the cache")
        _add_compiling(command)


def _add_plan(plan: argparse.ArgumentParser) -> None:
    from forerun.planning.planner import PlanOptions

    default = PlanOptions()
    plan.add_argument("--model", required=True, metavar="FILE", help="a YAML file of the model's shape")
    plan.add_argument("--hardware", required=True, metavar="FILE", help="a YAML file of devices")
    plan.add_argument("--context", type=int, default=default.context, help="positions that a row attends to")
    plan.add_argument("--latency", type=float, default=default.latency, help="milliseconds per token, at most")
    plan.add_argument("--devices", type=int, default=default.devices, help="devices of a plan, at most")
    in_flight = "micro-batches in flight, at most"
    plan.add_argument("--micro-batches", type=int, default=default.micro_batches, help=in_flight)
    plan.add_argument("--batch", type=int, help="sequences in flight, at most (default: as many as fit)")
    plan.add_argument(
        "--accepted", metavar="ROWS:LENGTH,...", help="accepted lengths by the rows of a tree (default: 1:1, no tree)"
    )
    plan.add_argument(
        "--acceptance", type=float, help="how often each token of a drafted chain is right, instead (default: no draft)"
    )
    fraction = "the fraction of the devices' peaks that is reached"
    plan.add_argument("--efficiency", type=float, default=default.efficiency, help=fraction)
    plan.add_argument("--measured", metavar="FILE", help="measured seconds of the parts (default: a roofline)")
    plan.add_argument("--attention-device", metavar="NAME", help="the attention part's device (default: the best)")
    plan.add_argument("--ffn-device", metavar="NAME", help="the FFN part's device (default: the best)")
    plan.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    plan.set_defaults(run=commands.run_plan)


if __name__ == "__main__":
    sys.exit(main())

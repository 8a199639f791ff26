"""Importing forerun, strategies and help need no heavy library; wrong options are refused before one is imported."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun import strategies
from forerun.strategies import DESCRIPTIONS, STRATEGIES, strategy_names

HEAVY = ("torch", "transformers", "tvm", "xdsl", "triton", "tokenizers")
STARTED = 1.0
"""Seconds in which help and imports must be done."""


def python(code: str) -> Any:
    """The JSON that a program, run in a new process, prints last."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


PLAN = [
    f"{flag}={Path(__file__).parent.parent}/examples/plan/{file}.yaml"
    for flag, file in (("--model", "models/step3"), ("--hardware", "hardware/step3_paper"))
]
LIGHT = {
    "the package": "import forerun",
    "a strategy": "import forerun; forerun.TreeSpec(); forerun.EarlyExit(layer=2); forerun.DraftModel('x')",
    "an error": "import forerun; forerun.ForerunError; forerun.errors.PromptError",
    "a hook's and a search's class": "import forerun; forerun.hooks.Hook; forerun.search.BestOf",
    "a result's class": "import forerun; forerun.Generation; forerun.CompiledModel",
    "both tools": "import forerun.cli, forerun.opt",
    "all names but compile": "import forerun; [getattr(forerun, n) for n in forerun.__all__ if n not in "
    "('compile', 'with_strategy')]",
    "help": "from forerun.cli import main\ntry: main(['--help'])\nexcept SystemExit: print()",
    "help of a command": "from forerun.cli import main\ntry: main(['generate', '--help'])\nexcept SystemExit: print()",
    "a plan": f"from forerun.cli import main\nmain(['plan', *{PLAN}, '--devices=16'])",
    "the other tool's help": "from forerun.opt import main\ntry: main(['--help'])\nexcept SystemExit: print()",
}


@pytest.mark.parametrize("case", LIGHT)
def test_nothing_heavy_is_imported(case: str) -> None:
    loaded = python(f"{LIGHT[case]}\nimport sys, json; print(json.dumps(sorted(sys.modules)))")
    assert not [name for name in HEAVY if name in loaded]


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import forerun"],
        ["-m", "forerun.cli", "--help"],
        ["-m", "forerun.cli", "--version"],
        ["-m", "forerun.opt", "--help"],
        ["-m", "forerun.cli", "generate", "/no/such/model", "--prompt", "x"],
    ],
    ids=" ".join,
)
def test_answers_come_at_once(command: list[str]) -> None:
    """Processor seconds, the least of three runs: other programs, including other tests, may keep the machine busy."""
    took: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=False, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert 0 < min(took) < STARTED


def test_every_public_name_is_found() -> None:
    namespace: dict[str, Any] = {}
    exec("from forerun import *", namespace)
    assert set(forerun.__all__) <= set(namespace)
    assert set(forerun.__all__) <= set(dir(forerun))
    assert forerun.TreeSpec is strategies.TreeSpec
    assert issubclass(forerun.errors.InvalidOptionError, forerun.ForerunError)
    with pytest.raises(AttributeError, match="no attribute 'Treespec'"):
        _ = forerun.Treespec  # type: ignore[attr-defined]


REFUSED: dict[str, list[str]] = {
    "an unknown strategy": ["generate", "MODEL", "--token-ids", "1", "--strategy", "magic"],
    "a draft that is not there": ["generate", "MODEL", "--token-ids", "1", "--strategy", "draft_model:/no/such"],
    "a draft without a path": ["generate", "MODEL", "--token-ids", "1", "--strategy", "draft_model:"],
    "an unknown dtype": ["generate", "MODEL", "--token-ids", "1", "--dtype", "int3"],
    "a dtype of another target": ["generate", "MODEL", "--token-ids", "1", "--dtype", "float16", "--target", "cpu"],
    "an unknown target": ["generate", "MODEL", "--token-ids", "1", "--target", "abacus"],
    "no room": ["generate", "MODEL", "--token-ids", "1", "--max-length", "1"],
    "too much room": ["generate", "MODEL", "--token-ids", "1", "--max-length", "9" * 30],
    "no new tokens": ["generate", "MODEL", "--token-ids", "1", "--max-new-tokens", "0"],
    "more new tokens than room": ["generate", "MODEL", "--prompt", "x", "--max-length", "8", "--max-new-tokens", "8"],
    "a prompt of more than there is room": [
        "generate",
        "MODEL",
        "--token-ids",
        "1,2,3",
        "--max-length",
        "8",
        "--max-new-tokens",
        "6",
    ],
    "a negative seed": ["generate", "MODEL", "--token-ids", "1", "--seed", "-1"],
    "a seed in letters": ["generate", "MODEL", "--token-ids", "1", "--seed", "x"],
    "a temperature of 0": ["generate", "MODEL", "--token-ids", "1", "--do-sample", "--temperature", "0"],
    "a temperature of nan": ["generate", "MODEL", "--token-ids", "1", "--do-sample", "--temperature", "nan"],
    "a negative top_k": ["generate", "MODEL", "--token-ids", "1", "--do-sample", "--top-k", "-1"],
    "a top_p above 1": ["generate", "MODEL", "--token-ids", "1", "--do-sample", "--top-p", "1.5"],
    "a temperature without sampling": [
        *("generate", "MODEL", "--token-ids", "1"),
        "--no-do-sample",
        "--temperature",
        "0.5",
    ],
    "letters for token ids": ["generate", "MODEL", "--token-ids", "1,b"],
    "negative token ids": ["generate", "MODEL", "--token-ids=-1"],
    "no token ids": ["generate", "MODEL", "--token-ids", ""],
    "token ids past 32 bits": ["generate", "MODEL", "--token-ids", "99999999999"],
    "an empty prompt": ["generate", "MODEL", "--prompt", ""],
    "a missing prompt file": ["generate", "MODEL", "--prompt-file", "/no/such/prompt"],
    "a prompt file that is a folder": ["generate", "MODEL", "--prompt-file", "MODEL"],
    "a prompt file without an end": ["generate", "MODEL", "--prompt-file", "/dev/zero"],
    "two kinds of prompts": ["generate", "MODEL", "--prompt", "x", "--token-ids", "1"],
    "two prompts": ["generate", "MODEL", "--prompt", "x", "--prompt", "y"],
    "no prompt": ["generate", "MODEL"],
    "a missing model": ["generate", "/no/such/model", "--prompt", "x"],
    "a model of an unknown user": ["generate", "~no-such-user/model", "--prompt", "x"],
    "a model with a NUL in its name": ["generate", "a\0b", "--prompt", "x"],
    "no cases": ["verify", "MODEL", "--cases", "0"],
    "a negative seed of cases": ["verify", "MODEL", "--seed", "-1"],
    "a folder that is a file": ["dump", "MODEL", "--out", "MODEL/config.json"],
    "an empty demo": ["demo", "--prompt", ""],
    "no new tokens of the demo": ["demo", "--max-new-tokens", "0"],
    "a plan without hardware": ["plan", "--model", "MODEL/config.json"],
    "a plan of no context": ["plan", *PLAN, "--context", "0"],
    "a plan for a file that is no model": ["plan", PLAN[1], "--model", "MODEL/config.json"],
    "a report without a folder": ["report", "MODEL", "-o", "MODEL/none/report.html"],
    "a report of nothing": ["report", "-o", "MODEL/report.html"],
    "a report of no tokens": ["report", "MODEL", "-o", "MODEL/report.html", "--max-new-tokens", "0"],
    "a report with a text for no tokenizer": ["report", "MODEL", "-o", "MODEL/report.html", "--prompt", "x"],
    "reports that are not there": ["report", "-o", "MODEL/r.html", "--compare", "/no/such/a.json", "/no/such/b.json"],
    "no command": [],
    "an unknown command": ["compile"],
    "an unknown option": ["generate", "MODEL", "--token-ids", "1", "--fast"],
}


def test_wrong_options_are_refused_before_anything_is_imported(tmp_path: Path) -> None:
    """All in one process, which never sees torch; each with one sentence and exit code 2."""
    (tmp_path / "config.json").write_text("{}")
    commands = [[part.replace("MODEL", str(tmp_path)) for part in command] for command in REFUSED.values()]
    answers = python(
        "import contextlib, io, json, sys\n"
        "from forerun.cli import main\n"
        "answers = []\n"
        f"for command in {commands!r}:\n"
        "    errors = io.StringIO()\n"
        "    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):\n"
        "        code = main(command)\n"
        "    answers.append([code, errors.getvalue(), 'torch' in sys.modules])\n"
        "print(json.dumps(answers))"
    )
    for case, (code, said, torch) in zip(REFUSED, answers, strict=True):
        assert code == 2, f"{case}: {said}"
        assert said.startswith("forerun: "), case
        assert said.count("\n") == 1, f"{case}: {said}"
        assert not torch, case


def test_every_strategy_has_a_line_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from forerun.cli import main

    assert set(DESCRIPTIONS) == set(strategy_names()) > set(STRATEGIES)
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    shown = capsys.readouterr().out
    for name, text in DESCRIPTIONS.items():
        assert name in shown
        assert text in shown


@pytest.mark.parametrize("command", ["demo", "generate", "verify", "dump", "report", "bench", "tune", "plan"])
def test_every_option_shows_its_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    from forerun.cli import main

    with pytest.raises(SystemExit):
        main([command, "--help"])
    options = capsys.readouterr().out.partition("options:")[2].partition("strategies,")[0]
    described = [" ".join(each.split()) for each in options.split("\n  -")[2:]]  # after --help
    required = () if command == "demo" else ("-prompt", "-prompt-file", "-token-ids", "-model", "-hardware")
    assert [each for each in described if "(default: " not in each and each.split()[0] not in required] == []


def test_versions(capsys: pytest.CaptureFixture[str]) -> None:
    from forerun import cli, opt

    for name, main in (("forerun", cli.main), ("forerun-opt", opt.main)):
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"{name} {forerun.__version__}\n"

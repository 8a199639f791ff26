"""What the environment refuses gives one sentence and exit code 2; signals and closed streams have their own codes."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from forerun import commands, compile_options, opt, storage, tool
from forerun.cli import main
from forerun.errors import InvalidOptionError, PromptError
from tests.models import FAMILIES

TOOL = [sys.executable, "-m", "forerun.cli"]
OPT = [sys.executable, "-m", "forerun.opt"]
MODULE = "spec.func @step(%x: !spec.tensor<[N], f32>) {\n  spec.return(%x)\n}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    FAMILIES["llama"]().save_pretrained(path)
    return path


def raising(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> Any:
        raise error

    return fail


def blocked(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that may not be written to, even if tests run as a user whom no permission stops."""
    real = os.open

    def refuse(file: Any, *rest: Any, **options: Any) -> int:
        if str(file).startswith(str(path / "blocked")):
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file, *rest, **options)

    (path / "blocked").mkdir()
    monkeypatch.setattr(os, "open", refuse)
    return str(path / "blocked")


def written(path: Path) -> Path:
    path.write_text("x")
    return path


def dangling(path: Path) -> Path:
    path.symlink_to("/no/such/target")
    return path


FOLDERS: dict[str, Callable[[Path, pytest.MonkeyPatch], str]] = {
    "a file": lambda path, _: str(written(path / "file")),
    "below a file": lambda path, _: str(written(path / "file") / "below"),
    "a dangling link": lambda path, _: str(dangling(path / "link")),
    "a link to itself": lambda path, _: (os.symlink(path / "loop", path / "loop"), str(path / "loop"))[1],
    "a name too long": lambda path, _: str(path / "new" / ("a" * 300)),
    "an unknown user's": lambda path, _: "~no-such-user/x",
    "a NUL": lambda path, _: str(path / "a\0b"),
    "no permission": blocked,
    "no file system that takes files": lambda path, _: "/proc/x/y",
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_cannot_be_written_to(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = FOLDERS[case](tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    assert main(["dump", str(folder), "--out", out, "--no-kernels"]) == 2
    said = capsys.readouterr().err
    assert (said[:9], said.count("\n")) == ("forerun: ", 1)
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-made
    with pytest.raises(InvalidOptionError):
        compile_options.require_folder("dump_dir", out)


def test_a_folder_is_made_only_when_something_is_written(tmp_path: Path) -> None:
    asked = tmp_path / "a" / "b"
    assert compile_options.require_folder("--out", asked) == asked
    assert not (tmp_path / "a").exists()


def test_a_full_disk_names_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, count = os.replace, 0

    def full(source: str, target: Path) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(storage.os, "replace", full)
    assert main(["dump", str(folder), "--out", str(tmp_path), "--no-kernels", "--max-length", "64"]) == 2
    said = capsys.readouterr().err
    assert "01_" in said
    assert "No space left" in said
    assert len(list(tmp_path.iterdir())) == 2  # no half-written file


ENVIRONMENT: dict[str, tuple[Exception, str]] = {
    "a full disk": (OSError(errno.ENOSPC, "No space left on device", "/a/b"), "'/a/b'"),
    "a full disk, from Rust": (Exception("I/O error: No space left on device (os error 28)"), "free some space"),
    "no permission": (PermissionError(errno.EACCES, "Permission denied", "/a"), "'/a' cannot be used"),
    "two files": (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "'/a' and '/b'"),
    "too many files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "no memory": (MemoryError(), "not enough memory"),
    "no memory, from torch": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"), "not enough memory"),
    "a character without bytes": (UnicodeEncodeError("utf-8", "\udce9", 0, 1, "surrogates not allowed"), "UTF-8"),
    "bytes without a character": (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), "UTF-8"),
    "a package that is not installed": (ModuleNotFoundError("No module named 'torch'", name="torch"), "install"),
    "an error of a library without a number": (OSError("Can't load it.\nTry again."), "Can't load it."),
}


@pytest.mark.parametrize("case", ENVIRONMENT)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_the_environment_refuses(
    case: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, named = ENVIRONMENT[case]
    monkeypatch.setattr(commands, "run_demo", raising(error))
    assert main(["demo", *(["--json"] if as_json else [])]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("forerun: ")
    assert shown.err.count("\n") == 1
    assert named in shown.err
    if as_json:
        assert json.loads(shown.out)["error"] == type(error).__name__


DEFECTS = [
    ZeroDivisionError(),
    KeyError("a"),
    RuntimeError("x"),
    ImportError("x", name="forerun.passes"),
    Exception("y"),
]


@pytest.mark.parametrize("error", DEFECTS, ids=repr)
def test_defects_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "run_demo", raising(error))
    with pytest.raises(type(error)):
        main(["demo"])


def test_a_chat_template_that_raises() -> None:
    from forerun.chat import encode_chat

    class Tokenizer:
        chat_template = "{{ raise_exception('no') }}"

        def apply_chat_template(self, *arguments: object, **options: object) -> str:
            raise ValueError("roles must alternate")

    with pytest.raises(PromptError, match=r"roles must alternate.*--raw"):
        encode_chat(Tokenizer(), "hello")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_an_exit_code(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is the same whatever a library does with the interruption; the handlers are restored afterwards."""

    def interrupted(arguments: object) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise RuntimeError("a callback failed") from error
        return 0

    inherited = signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        before = [signal.getsignal(each) for each in tool.ENDING]
        monkeypatch.setattr(commands, "run_demo", interrupted)
        assert main(["demo"]) == 128 + number
        assert [signal.getsignal(each) for each in tool.ENDING] == before
    finally:
        signal.signal(number, inherited)
    assert capsys.readouterr().err == ""


def test_a_signal_that_the_caller_ignores_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""

    def hung_up(arguments: object) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(commands, "run_demo", hung_up)
        assert main(["demo"]) == 0
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_an_interruption_inside_python_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "run_demo", raising(KeyboardInterrupt()))
    assert main(["demo"]) == 130


@pytest.mark.parametrize("delay", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_ends_without_a_traceback(delay: float, number: int, folder: Path) -> None:
    """The signal comes while libraries are imported and the model is compiled."""
    command = [*TOOL, "verify", str(folder), "--cases", "1000000", "--target", "cpu", "--max-length", "64"]
    # A shell's background jobs, these tests among them, are started with interruptions ignored.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )
    try:
        time.sleep(delay)
        process.send_signal(number)
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert (process.returncode, errors) == (128 + number, "")


def shell(command: str, **environment: str) -> tuple[list[int], str, str]:
    """The exit codes of a pipeline's commands, and what was written."""
    variables = {**os.environ, "FORERUN": " ".join(TOOL), "OPT": " ".join(OPT), **environment}
    script = f"{command}; echo ${{PIPESTATUS[@]}}"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, timeout=240, check=True)
    *output, codes = run.stdout.splitlines() or [""]
    return [int(each) for each in codes.split()], "\n".join(output), run.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["$FORERUN --help", "$FORERUN generate --help", "$OPT --help"])
def test_a_reader_that_goes_away(command: str, unbuffered: str) -> None:
    codes, _, errors = shell(f"{command} | sleep 0", PYTHONUNBUFFERED=unbuffered)
    assert codes == [128 + signal.SIGPIPE, 0]
    assert errors == ""


def test_a_reader_of_much_output_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "many.mlir").write_text("// -----\n".join([MODULE] * 5000))
    codes, shown, errors = shell(f"$OPT {tmp_path}/many.mlir --split-input-file | head -1")
    assert codes == [128 + signal.SIGPIPE, 0]
    assert shown.startswith("builtin.module")
    assert errors == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["$FORERUN --help", "$FORERUN --version", "$OPT --list"])
def test_an_output_that_is_full(command: str, unbuffered: str) -> None:
    codes, _, errors = shell(f"{command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert codes == [2]
    assert "No space left on device" in errors
    assert errors.count("\n") == 1


STREAMS = {
    "an output that is closed": ("$FORERUN --help >&-", 2, "Standard output is closed; redirect it"),
    "an output of passes that is closed": ("$OPT --list >&-", 2, "Standard output is closed; redirect it"),
    "errors that are closed": ("$FORERUN generate /no --prompt x 2>&-", 2, ""),
    "errors that are full": ("$FORERUN generate /no --prompt x 2>/dev/full", 2, ""),
    "all closed": ("$FORERUN generate /no --prompt x --json <&- >&- 2>&-", 2, ""),
    "an input that is closed": ("$OPT <&-", 2, "Standard input is closed"),
    "a terminal of one column": ("$FORERUN --help > /dev/null", 0, ""),
}


@pytest.mark.parametrize("case", STREAMS)
def test_streams_that_are_closed(case: str) -> None:
    command, code, said = STREAMS[case]
    codes, shown, errors = shell(command, COLUMNS="1", TERM="dumb")
    assert (codes, shown) == ([code], "")
    assert said in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_of_ascii(environment: dict[str, str]) -> None:
    codes, _, errors = shell("$FORERUN generate /nö/model --prompt x", **environment)
    assert codes == [2]
    assert errors.startswith("forerun: '/n")


def test_text_and_tables_on_a_stream_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    def show(arguments: object) -> int:
        print("naïve")
        console = commands._console()  # pyright: ignore[reportPrivateUsage]
        console.print(Table("[/x] é", "b"))
        return 0

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(commands, "run_demo", show)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["demo"]) == 0
    shown = stream.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"na\\xefve" in shown
    assert b"[/x] \\xe9" in shown
    assert stream.errors == "strict"


def test_a_table_whose_reader_has_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def show(arguments: object) -> int:
        commands._console().print("a table")  # pyright: ignore[reportPrivateUsage]
        return 0

    monkeypatch.setattr(commands, "run_demo", show)
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["demo"]) == 128 + signal.SIGPIPE
    assert capsys.readouterr().err == ""


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_fifo_that_nobody_writes_to_is_empty(fifo: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "--prompt-file", str(fifo)]) == 2
    assert "is empty" in capsys.readouterr().err
    assert opt.main([str(fifo)]) == 2


def test_prompts_come_through_pipes() -> None:
    read = "from forerun.prompt_input import prompt_file; print(prompt_file"
    command = f"cd {Path(__file__).parents[1]}; {sys.executable} -c \"{read}('{{}}'))\""
    assert shell(f"{command.format('-')} < <(echo 'caf\u00e9')", PYTHONIOENCODING="utf-8")[1].strip() == "café"
    read = "import sys; from forerun.prompt_input import prompt_file; print(prompt_file(sys.argv[1]))"
    late = f"{sys.executable} -c '{read}' <(sleep 0.5; echo late)"
    assert shell(late)[1].strip() == "late"


def test_an_argument_that_is_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "--prompt", os.fsdecode(b"caf\xe9")]) == 2
    assert "--prompt is not UTF-8 text (character 3)" in capsys.readouterr().err


def test_a_table_on_no_terminal_is_as_wide_as_it_has_to_be(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dump", str(folder), "--out", str(tmp_path), "--no-kernels", "--max-length", "64"]) == 0
    shown = capsys.readouterr().out
    assert "raise-grouped-queries" in shown
    assert "…" not in shown


def test_warnings_are_plain_lines(folder: Path) -> None:
    command = f"$FORERUN generate {folder} --token-ids 1,2 --max-new-tokens 2 --target reference --max-length 9999"
    draft = tmp_draft(folder)
    codes, _, errors = shell(f"{command} --strategy draft_model:{draft}", FORERUN_CACHE_DIR="/dev/null")
    first, second, third, *others = errors.splitlines()
    assert codes == [0]
    assert first == "forerun: --max-length 9999 was capped at 512: the model's configuration allows no more"
    assert second.startswith("forerun: Not everything is kept for the next start: /dev/null")
    assert third.startswith("forerun: in the draft model, --max-length 512 was capped at 256: ")
    assert others == []


def tmp_draft(folder: Path) -> Path:
    """A model with fewer positions."""
    path = folder.parent / "draft"
    FAMILIES["llama"](max_position_embeddings=256).save_pretrained(path)
    return path


def test_a_home_that_is_not_there() -> None:
    with pytest.raises(InvalidOptionError, match="~no-such-user"):
        storage.expanded("~no-such-user/x")
    with pytest.raises(InvalidOptionError, match="NUL"):
        storage.expanded("a\0b")
    assert storage.expanded("./~odd") == Path("~odd")

"""For any text, options and order of passes, forerun-opt gives a module, or one sentence and exit code 2."""

import contextlib
import io
import itertools
import sys
from pathlib import Path

import pytest

from forerun import errors, opt
from forerun.ir import parse_ir, verify
from forerun.passes.base import PassContext
from forerun.passes.insert_kv_cache import InsertKVCache
from forerun.passes.pipeline import PASSES, parse_passes, run_pipeline

FILECHECK = Path(__file__).parent / "filecheck"
OPTIONS = {"skip-layers": "skip-layers{branches=1}", "early-exit": "early-exit{layers=1}"}
NAMED = [OPTIONS.get(name, name) for name in PASSES]
BARE = {
    "nothing": "builtin.module {\n}\n",
    "a function of nothing": "spec.func @forward() { spec.return() }",
    "a step of nothing": "spec.func @step() { spec.return() }",
    "a step that returns nothing": "spec.func @step(%tokens: !spec.tensor<[N], i32>) { spec.return() }",
    "a step that returns its tokens": "spec.func @step(%tokens: !spec.tensor<[N], i32>) { spec.return(%tokens) }",
    "a scalar": "spec.func @forward(%x: !spec.tensor<[], f32>) { spec.return(%x) }",
    "a forward without a sequence": "spec.func @forward(%x: !spec.tensor<[4], f32>) { spec.return(%x) }",
    "a forward of floats": "spec.func @forward(%x: !spec.tensor<[1, T], f32>) { spec.return(%x) }",
    "a forward of one dimension": "spec.func @forward(%x: !spec.tensor<[T], i64>) { spec.return(%x) }",
    "no constants": "spec.func @constants() { spec.return() }",
}


def modules() -> dict[str, str]:
    """Every module of the text tests that verifies, and bare ones."""
    found = dict(BARE)
    for file in sorted(FILECHECK.rglob("*.mlir")):
        for number, text in enumerate(file.read_text().split(f"\n{opt.SEPARATOR}\n")):
            try:
                verify(parse_ir(text))
            except errors.VerificationError:
                continue
            found[f"{file.stem}-{number}"] = text
    return found


MODULES = modules()


@pytest.mark.parametrize("module", MODULES)
def test_every_pass_alone_and_twice_gives_a_module_or_a_sentence(module: str) -> None:
    for names in [(each,) for each in NAMED] + [(each, each) for each in NAMED]:
        parsed = parse_ir(MODULES[module])
        with contextlib.suppress(errors.ForerunError):
            run_pipeline(parsed, list(parse_passes(",".join(names))), PassContext())


def test_every_pass_behind_every_other() -> None:
    """The passes run on the step with branches, where most of them do something."""
    text = next(text for name, text in MODULES.items() if name.startswith("skip_layers"))
    for names in itertools.permutations(NAMED, 2):
        parsed = parse_ir(text)
        with contextlib.suppress(errors.ForerunError):
            run_pipeline(parsed, list(parse_passes(",".join(names))), PassContext())


TWICE: dict[str, tuple[str, str]] = {
    "insert-kv-cache": ("insert_kv_cache", "has a @step already"),
    "tree-mask": ("tree_mask", "has the argument bases already"),
    "select-outputs": ("select_outputs", "select-outputs works on a @step of 1 results, not 3"),
    "skip-layers{branches=1}": ("skip_layers", "has a @draft already"),
    "fuse-kernels": ("skip_layers", "are in kernels"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_pass_that_has_run_says_so(name: str) -> None:
    file, named = TWICE[name]
    text = next(text for module, text in MODULES.items() if module.startswith(file))
    run_pipeline(parse_ir(text), list(parse_passes(name)), PassContext())
    with pytest.raises(errors.PassError, match=named):
        run_pipeline(parse_ir(text), list(parse_passes(f"{name},{name}")), PassContext())


BAD_OPTIONS = [
    "insert-kv-cache{", "insert-kv-cache}", "insert-kv-cache{block=}", "insert-kv-cache{block}", "insert-kv-cache{=3}",
    "insert-kv-cache{block=0}", "insert-kv-cache{block=-1}", "insert-kv-cache{block=1.5}", "early-exit{layers=true}",
    "insert-kv-cache{block=true}", 'insert-kv-cache{block="16"}', "insert-kv-cache{block=1 block=2}",
    "insert-kv-cache{block=1,2}", "insert-kv-cache{block=99999999999999999999}",
    "insert-kv-cache{{}}", "{", "}", ",", "=", " ", '"', "\0", "é",
    "canonicalize{x=1}", "canonicalize,,canonicalize", "skip-layers{branches=-1}", "skip-layers{branches=1,1}",
    "skip-layers{branches=a}", "skip-layers{branches=true}", "skip-layers{branches=999}", "early-exit{layers=-1}",
    "early-exit{layers=99999999999}", "plan-memory{max_rows=0}", "plan-memory{max-rows=-2}",
    "plan-memory{max_outputs=99999999999}", "store-weights{storage=foo}", "store-weights{storage=3}",
    "tabulate-positions{max_length=-1}", "tabulate-positions{max_length=99999999999}", "select-outputs{candidates=0}",
    "insert_kv_cache", "needs", "canonicalize{name=x}", "canonicalize{needs=x}", "canonicalize{" * 2000,
]  # fmt: skip


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert opt.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("forerun-opt: ")
    return said


@pytest.mark.parametrize("options", BAD_OPTIONS, ids=lambda each: repr(each)[:40])
def test_bad_options(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = FILECHECK / "passes" / "skip_layers.mlir"
    assert "Traceback" not in refused([str(file), "--split-input-file", "-p", options], capsys)


def test_options_are_checked_in_python_too() -> None:
    with pytest.raises(errors.InvalidOptionError, match="block to be from 1 to"):
        InsertKVCache(block=0)


def forward(type: str) -> str:
    return f"spec.func @forward(%x: {type}) {{ spec.return(%x) }}"


TEXTS: dict[str, str] = {
    "a negative size": forward("!spec.tensor<[-1], f32>"),
    "a size past 64 bits": forward("!spec.tensor<[99999999999999999999999], f32>"),
    "a broken size": forward("!spec.tensor<[1.5], f32>"),
    "an unknown element": forward("!spec.tensor<[1], f99>"),
    "a negative size of a weight": 'spec.weight @w {shape = [-2, 3], dtype = "f32"}',
    "a negative size of a shape": "spec.func @f(%x: !spec.tensor<[4], f32>) {\n"
    "%y = spec.reshape(%x) {shape = [-4]} -> !spec.tensor<[4], f32>\nspec.return(%y) }",
    "an unknown operation": "spec.func @f() { spec.foo()\n spec.return() }",
    "an unknown dialect": '"foo.bar"() : () -> ()',
    "open modules": "builtin.module {" * 3000,
    "nested modules": "builtin.module {\n" * 3000 + "}" * 3000,
    "nested attributes": "spec.func @f() attributes {a = " + "[" * 5000 + "]" * 5000 + "} { spec.return() }",
    "nested functions": "spec.func @f() {" * 2000 + "}" * 2000,
    "nested types": forward("!spec.tensor<[" * 3000),
    "nothing": "",
    "a comment": "// x",
    "zeros": "\0" * 100,
    "a program": "\x7fELF\x02\x01",
    "a byte order mark": "\ufeffbuiltin.module {}",
    "an open string": '"',
}


@pytest.mark.parametrize("case", TEXTS)
def test_bad_texts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXTS[case]))
    said = refused(["-"], capsys)
    (tmp_path / "text.mlir").write_text(TEXTS[case], encoding="utf-8")
    assert said.partition(" is ")[2] == refused([str(tmp_path / "text.mlir")], capsys).partition(" is ")[2].replace(
        str(tmp_path / "text.mlir"), "<stdin>"
    )


def test_files_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    assert "is not UTF-8 text (byte 128)" in refused([str(tmp_path / "binary")], capsys)
    assert "Is a directory" in refused([str(tmp_path)], capsys)
    assert "There is no file" in refused([str(tmp_path / "missing")], capsys)
    assert "NUL" in refused(["a\0b"], capsys)
    assert "has more than" in refused(["/dev/zero"], capsys)


def test_several_modules_without_the_option_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.mlir"
    file.write_text(f"{BARE['no constants']}\n{opt.SEPARATOR}\n{BARE['no constants']}\n", encoding="utf-8")
    assert "--split-input-file" in refused([str(file)], capsys)
    assert opt.main([str(file), "--split-input-file"]) == 0


def test_what_a_pass_did_not_expect_is_a_sentence_and_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise AssertionError("no such luck")

    monkeypatch.setattr(PASSES["canonicalize"], "apply", broken)
    file = str(FILECHECK / "passes" / "skip_layers.mlir")
    assert "AssertionError: no such luck" in refused([file, "-p", "canonicalize"], capsys)
    with pytest.raises(AssertionError):
        opt.main([file, "-p", "canonicalize", "--traceback"])

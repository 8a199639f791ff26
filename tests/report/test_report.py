"""What a report holds, how it is written and read, and what the command refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from forerun.cli import main
from forerun.errors import CorruptFileError, SourceNotFoundError
from forerun.report.data import VERSION, Report, read_report
from forerun.report.page import page
from tests.report.conftest import PROMPT, Written


def test_it_can_be_written_and_read(written: Written) -> None:
    assert read_report(written.data) == written.report


def test_the_passes(written: Written) -> None:
    passes = written.report.passes
    assert passes[0].name == "import"
    assert [each.name for each in passes][-2:] == ["fuse-kernels", "plan-memory"]
    for before, after in pairwise(passes):
        assert after.before == before.after
    unchanged = next(each for each in passes if each.name == "ungroup-experts")
    assert unchanged.text is None
    assert all(each.text is None or each.text.startswith("builtin.module") for each in passes)
    assert all(not note.startswith(each.name) for each in passes for note in each.notes)


def test_the_boxes_hold_every_kernel_once(written: Written) -> None:
    step = written.report.step
    assert step is not None
    inside = [at for group in step.groups for part in group.parts for column in part.kernels for at in column]
    assert sorted(inside) == list(range(len(step.kernels)))
    [layers] = [group for group in step.groups if group.layers]
    assert (layers.title, layers.layers) == ("layers 0 to 3", 4)
    assert [part.name for part in layers.parts] == ["attention", "feed forward"]
    for part in layers.parts:
        for column in part.kernels:
            assert len({step.kernels[at].structure for at in column}) == 1


def test_bytes_and_operations_of_a_product(written: Written) -> None:
    step = written.report.step
    assert step is not None
    [gate] = [each for each in step.structures if each.label == "layers.*.mlp.gate_up"]
    hidden, inner = 64, 128
    for work in gate.work:
        assert work.weight_bytes == 2 * hidden * inner * 4
        assert work.value_bytes == work.rows * (hidden + inner) * 4
        assert work.operations == work.rows * 2 * 2 * hidden * inner
        assert work.least is not None
        assert min(work.least) > 0


def test_operations_of_an_attention_grow_with_the_context(written: Written) -> None:
    step = written.report.step
    assert step is not None
    [attention] = [each for each in step.structures if each.kind == "attention"]
    numbers = 64 + 64  # of queries and of results in a row: each meets every position before it
    for work in attention.work:
        least = 2 * numbers * work.rows * (step.context + 1)
        assert least <= work.operations <= least + 2 * numbers * work.rows**2


def test_the_replay_is_the_generation(written: Written) -> None:
    replay = written.report.replay
    assert replay is not None
    assert replay.prompt == ", ".join(map(str, PROMPT))
    assert [token for step in replay.steps for token in step.committed] == list(replay.token_ids)
    assert "".join(step.text for step in replay.steps) == replay.text
    assert sum(length * count for length, count in replay.lengths) == len(replay.token_ids)
    assert sum(count for _, count in replay.tokens_by) == len(replay.token_ids)
    for step in replay.steps:
        path = [step.tokens[row] for row in step.path]
        assert path[1:] == list(step.committed[:-1])
        assert step.parents[0] == step.proposers[0] == -1
        assert all(parent < row for row, parent in enumerate(step.parents))
        assert sum(step.phases) <= step.ended - step.began + 1e-6
        assert all(0 <= each < len(replay.proposers) for each in step.proposers[1:])
    assert replay.plain is not None
    assert replay.plain.same
    assert replay.plain.tokens == len(replay.token_ids)
    assert any(len(step.path) > 1 for step in replay.steps), "nothing was accepted"


def test_the_trace_is_nested(written: Written) -> None:
    events = json.loads(written.trace.read_text(encoding="utf-8"))["traceEvents"]
    assert {each["ph"] for each in events} == {"M", "X", "C"}
    spans = [each for each in events if each["ph"] == "X"]
    assert all(each["dur"] >= 0 and each["ts"] >= 0 and each["name"] for each in spans)
    named = {(each["pid"], each["tid"]) for each in events if each["name"] == "thread_name"}
    assert {(each["pid"], each["tid"]) for each in spans} == named
    for thread in named:
        own = sorted(
            ((each["ts"], each["ts"] + each["dur"]) for each in spans if (each["pid"], each["tid"]) == thread),
            key=lambda span: (span[0], -span[1]),
        )
        open_until: list[float] = []
        for begin, end in own:
            while open_until and open_until[-1] <= begin + 0.01:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 0.01, "spans of a thread overlap"
            open_until.append(end)
    iterations = [each for each in spans if each["name"].startswith("iteration")]
    assert written.report.replay is not None
    assert len(iterations) == len(written.report.replay.steps)


def test_no_text_ends_the_data(written: Written) -> None:
    told = "</script><script>alert(1)</script><!--"
    about = replace(written.report.about, model=told)
    text = page(replace(written.report, about=about, notes=(told,)))
    data = text.split('id="data">', 1)[1].split("</script>", 1)[0]
    assert json.loads(data)["notes"] == [told]
    assert "<!--" not in data
    assert "<title>&lt;/script>" in text


def _with(change: Callable[[dict[str, Any]], object]) -> Callable[[Report], str]:
    def text(report: Report) -> str:
        data = json.loads(report.text())
        change(data)
        return json.dumps(data)

    return text


DAMAGED: dict[str, tuple[Callable[[Report], str], str]] = {
    "not JSON": (lambda report: "<html>", "is not JSON"),
    "not a report": (lambda report: '{"kind": "forerun plan"}', "is not the data of a report"),
    "a list": (lambda report: "[1]", "is not the data of a report"),
    "of another version": (_with(lambda data: data.update(version=VERSION + 1)), f"a report of version {VERSION + 1}"),
    "without passes": (_with(lambda data: data.pop("passes")), "is damaged"),
    "with other numbers": (_with(lambda data: data["about"].update(max_length="long")), "is damaged"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_no_report(case: str, written: Written, tmp_path: Path, capsys: Any) -> None:
    text, sentence = DAMAGED[case]
    path = tmp_path / "other.json"
    path.write_text(text(written.report), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=sentence):
        read_report(path)
    out = tmp_path / "compared.html"
    assert main(["report", "--compare", str(written.data), str(path), "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said
    assert not out.exists()


def test_a_missing_report(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"nowhere\.json"):
        read_report(tmp_path / "nowhere.json")


REFUSED: dict[str, tuple[list[str], str]] = {
    "no model": ([], "needs a MODEL"),
    "a missing model": (["/no/such/model"], "/no/such/model"),
    "a missing folder": (["MODEL", "-o", "FOLDER/none/report.html"], "a folder that does not exist"),
    "a folder as a page": (["MODEL", "-o", "FOLDER"], "is a folder"),
    "the data's name as the page": (["MODEL", "-o", "FOLDER/report.json"], "names the page"),
    "a missing folder of the trace": (["MODEL", "-o", "FOLDER/r.html", "--trace", "FOLDER/none/t.json"], "--trace"),
    "a model to compare": (["MODEL", "--compare", "a", "b", "-o", "FOLDER/r.html"], "leave out MODEL"),
    "a trace of a comparison": (["--compare", "a", "b", "--trace", "FOLDER/t.json", "-o", "FOLDER/r.html"], "no trace"),
    "an unknown strategy": (["MODEL", "--strategy", "tree_spek", "-o", "FOLDER/r.html"], "tree_spec"),
    "no new tokens": (["MODEL", "--max-new-tokens", "0", "-o", "FOLDER/r.html"], "--max-new-tokens"),
    "bad token ids": (["MODEL", "--token-ids", "1,x", "-o", "FOLDER/r.html"], "--token-ids"),
    "an empty prompt": (["MODEL", "--prompt", "", "-o", "FOLDER/r.html"], "--prompt is empty"),
    "an unknown target": (["MODEL", "--target", "tpu", "-o", "FOLDER/r.html"], "tpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_refuses(case: str, written: Written, tmp_path: Path, capsys: Any) -> None:
    given, sentence = REFUSED[case]
    filled = [each.replace("MODEL", str(written.model)).replace("FOLDER", str(tmp_path)) for each in given]
    assert main(["report", *filled]) == 2
    said = capsys.readouterr().err
    assert said.startswith("forerun: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_three_files(written: Written, tmp_path: Path, capsys: Any) -> None:
    out, trace = tmp_path / "tiny.html", tmp_path / "trace.json"
    options = ["--max-length", "64", "--max-new-tokens", "8", "--token-ids", "1,2,3", "--json"]
    assert main(["report", str(written.model), "-o", str(out), "--trace", str(trace), *options]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"files": [str(out), str(tmp_path / "tiny.json"), str(trace)], "bytes": out.stat().st_size}
    replay = read_report(tmp_path / "tiny.json").replay
    assert replay is not None
    assert len(replay.token_ids) == 8
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]

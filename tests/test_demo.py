"""The demo's model by name, and what the demo says of a comparison that speculation loses."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forerun
from forerun import cli, commands, compile_options
from forerun.comparison import Comparison
from forerun.frontends import demo
from forerun.runtime.request import Stats
from tests.models import FAMILIES

PLAIN = Stats(steps=100, rows=100, tokens=100, prefill_seconds=1.0, decode_seconds=10.0)


def speculative(accepted: float, cost: float) -> Stats:
    """100 tokens whose steps accept `accepted` tokens each and cost `cost` plain steps."""
    steps = round(100 / accepted)
    return Stats(steps, rows=8 * steps, tokens=100, prefill_seconds=1.0, decode_seconds=steps * 0.1 * cost)


@pytest.mark.parametrize(("accepted", "cost"), [(1.0, 1.3), (2.0, 2.0), (2.0, 1.95), (1.25, 1.5)])
def test_a_loss_is_said_with_its_reason(accepted: float, cost: float) -> None:
    compared = Comparison(speculative(accepted, cost), PLAIN)
    assert compared.speedup == pytest.approx(accepted / cost)
    assert compared.step_cost == pytest.approx(cost)
    assert compared.note is not None
    assert f"a step gains {accepted:.2f} tokens" in compared.note
    assert f"as long as {cost:.2f} plain steps" in compared.note
    assert compared.to_dict()["note"] == compared.note


@pytest.mark.parametrize(("accepted", "cost"), [(2.0, 1.1), (2.0, 1.9)])
def test_a_gain_needs_no_words(accepted: float, cost: float) -> None:
    assert Comparison(speculative(accepted, cost), PLAIN).note is None


@pytest.mark.parametrize(("accepted", "loses"), [(1.0, True), (2.0, False)])
@pytest.mark.parametrize("as_json", [False, True])
def test_the_demo_says_so(
    accepted: float, loses: bool, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def model(stats: Stats) -> Any:
        text = SimpleNamespace(stats=stats, text="x", has_bits_of=lambda other: True)
        return SimpleNamespace(generate=lambda *arguments, **options: text, tokenizer=None)

    monkeypatch.setattr(commands, "compiled", lambda arguments: model(speculative(accepted, 1.2)))
    monkeypatch.setattr("forerun.schedules.with_strategy", lambda given, strategy: model(PLAIN))
    monkeypatch.setattr(commands, "_encoded", lambda *arguments: [1])
    monkeypatch.setattr(commands, "_streamer", lambda given: None)
    assert cli.main(["demo", "--prompt", "[/b] :x: {0}", *(["--json"] if as_json else [])]) == 0
    shown = capsys.readouterr().out
    assert ("does not pay" in shown) == loses
    if as_json:
        assert (json.loads(shown)["note"] is not None) == loses
        assert json.loads(shown)["speedup"] == pytest.approx(accepted / 1.2)
    else:
        assert "[/b] :x: {0}" in shown


def test_demo_names_the_package_and_a_folder_needs_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    FAMILIES["llama"]().save_pretrained(tmp_path / "demo")
    packaged = tmp_path / "other"
    FAMILIES["llama"](vocab_size=48).save_pretrained(packaged)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "demo_model", lambda: packaged)
    assert compile_options.located("demo") == packaged
    for given in ("./demo", Path("demo"), str(tmp_path / "demo")):
        assert compile_options.located(given).resolve() == tmp_path / "demo"
    options = {"strategy": "autoregressive", "target": "reference", "max_length": 32}
    vocabularies = [forerun.compile(each, **options).executable.vocabulary for each in ("demo", "./demo")]
    assert vocabularies == [48, FAMILIES["llama"]().config.vocab_size]


def test_a_missing_demo_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PACKAGE", "no_such_package_of_models")
    with pytest.raises(forerun.errors.SourceNotFoundError, match="pip install"):
        forerun.compile("demo")

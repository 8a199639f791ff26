"""The small models' recipe: LayerSkip's formulas (arXiv 2404.16710), the split of the text, and a run in miniature."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import forerun
from benchmarks.small_model import Decoder, Settings, SmallModels, small_models
from benchmarks.text import python_sources, split, train_tokenizer
from benchmarks.training import (
    Phase,
    Recipe,
    batches_of,
    dropout_rates,
    exit_states,
    exit_weights,
    exits_of_step,
    learning_rate,
    step_weights,
)

RECIPE = Recipe((Phase(1, 1), Phase(2, 1)), batch=2, length=16, dropout=0.5, exit_scale=1.0, rotation=2)
DECODER = Decoder(layers=2, hidden=64, inner=96, heads=2, key_value_heads=1, recipe=RECIPE)
SETTINGS = Settings(DECODER, DECODER, DECODER, vocabulary=320, other_vocabulary=288, prompts=3, windows=4)


def silent(items, description):
    return items


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty modules, one of them a test and one not UTF-8."""
    folder = tmp_path_factory.mktemp("library")
    for index in range(60):
        body = "".join(f"def f{index}_{line}(x):\n    return x + {line * index % 7}\n\n\n" for line in range(40))
        (folder / f"module{index}.py").write_text(body, encoding="utf-8")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_it.py").write_text("x = 1\n", encoding="utf-8")
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return folder


@pytest.fixture(scope="module")
def found(library: Path, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield small_models(silent, SETTINGS, library)


def test_dropout_doubles_its_growth_over_the_depth() -> None:
    rates = dropout_rates(16, 0.2)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    expected = [0.2 * (math.exp(layer * math.log(2) / 15) - 1) for layer in range(16)]
    assert rates == pytest.approx(expected)
    assert dropout_rates(1, 0.2) == [0]


def test_exit_weights_are_the_papers() -> None:
    # e(l) = e_scale * sum(0..l); the last layer: L - 1 + e_scale * sum(0..L-2)
    assert exit_weights(5, 1.0) == [0, 1, 3, 6, 4 + 6]
    assert exit_weights(5, 0.5) == [0, 0.5, 1.5, 3, 4 + 3]
    assert exit_weights(5, 0.0) == [0, 0, 0, 0, 4]
    assert exit_weights(1, 1.0) == [1]


def test_every_exit_has_its_turn_and_the_last_one_always() -> None:
    assert exits_of_step(0, 6, 3) == [0, 3, 5]
    assert exits_of_step(1, 6, 3) == [1, 4, 5]
    assert exits_of_step(2, 6, 3) == [2, 5]
    assert exits_of_step(3, 6, 3) == exits_of_step(0, 6, 3)


def test_the_weights_of_a_step_sum_to_one() -> None:
    assert step_weights(1, 5, 1.0, 2) == pytest.approx({1: 1 / 17, 3: 6 / 17, 4: 10 / 17})
    assert step_weights(0, 5, 0.0, 1) == {4: 1.0}
    assert step_weights(0, 1, 1.0, 4) == {0: 1.0}


def test_the_learning_rate_warms_up_and_falls() -> None:
    recipe = Recipe((Phase(2, 100),), learning_rate=1.0, warmup=10, final_rate=0.1)
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)


def test_a_dropped_layer_leaves_a_sample_as_it_is() -> None:
    model = _random_decoder()
    ids = torch.arange(24).reshape(4, 6)
    whole = exit_states(model, ids, [0.0, 0.0], [0, 1], torch.Generator())
    none = exit_states(model, ids, [0.0, 1.0], [0, 1], torch.Generator())
    some = exit_states(model, ids, [0.0, 0.5], [0, 1], torch.Generator().manual_seed(0))[1]
    assert torch.equal(none[1], none[0])
    kept = [torch.allclose(some[row], whole[1][row], atol=1e-6) for row in range(4)]
    dropped = [torch.equal(some[row], whole[0][row]) for row in range(4)]
    assert kept != dropped
    assert any(kept)
    assert any(dropped)
    assert all(one or other for one, other in zip(kept, dropped, strict=True))


def test_all_exits_are_the_models_own_states() -> None:
    model = _random_decoder()
    ids = torch.arange(24).reshape(4, 6)
    states = exit_states(model, ids, [0.0, 0.0], [0, 1], torch.Generator())
    with torch.no_grad():
        expected = model(ids).logits
        actual = model.lm_head(model.model.norm(states[1]))
    torch.testing.assert_close(actual, expected)


def test_batches_repeat_no_window_within_a_pass() -> None:
    recipe = replace(RECIPE, batch=2, length=4)
    batches = batches_of(np.arange(105), recipe)
    first = torch.cat([next(batches) for _ in range(10)])
    assert first.shape == (20, 5)
    assert len(set(first.flatten().tolist())) == 100


def test_the_split_is_disjoint_and_does_not_depend_on_other_files(library: Path) -> None:
    sources = python_sources(library)
    names = [source.name for source in sources]
    assert names == sorted(names)
    assert "latin.py" not in names
    assert "tests/test_it.py" not in names
    learned, held_out = split(sources)
    assert held_out
    assert {each.name for each in learned}.isdisjoint(each.name for each in held_out)
    assert len(learned) + len(held_out) == len(sources)
    again, _ = split(list(reversed(sources[::2])))
    assert {each.name for each in again} <= {each.name for each in learned}


def test_a_vocabulary_has_its_size_and_loses_nothing(library: Path) -> None:
    sources = python_sources(library)
    tokenizer = train_tokenizer(sources, 300)
    assert len(tokenizer) == 300
    text = "def é(x):\n\treturn  'snow ☃'  \n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert train_tokenizer(sources, 300).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_prompts_are_held_out_and_the_same_as_text(found: SmallModels) -> None:
    tokenizer = AutoTokenizer.from_pretrained(found.target, local_files_only=True)
    assert len(found.prompts) == 3
    for tokens, text in zip(found.prompts, found.texts, strict=True):
        assert 64 <= len(tokens) <= 128
        assert tokenizer.encode(text) == tokens


def test_what_was_saved_loads_and_compiles(found: SmallModels) -> None:
    for path in (found.target, found.draft, found.other):
        loaded = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
        assert loaded.config.num_hidden_layers == 2
    compiled = forerun.compile(found.target, target="reference", max_length=160)
    prompt = found.prompts[0]
    generated = compiled.generate(prompt, max_new_tokens=4)
    assert 1 <= len(generated.token_ids) <= 4
    assert compiled.tokenizer.encode(found.texts[0]) == prompt


def test_the_report_has_a_row_for_every_exit(found: SmallModels) -> None:
    exits = found.report["models"]["target"]["exits"]
    assert len(exits) == 2
    assert exits[-1][1] == 1.0
    assert all(0 < loss < 2 * math.log(320) and 0 <= agreed <= 1 for loss, agreed in exits)
    assert 0 <= found.report["models"]["draft"]["agreement"] <= 1


def test_a_second_call_reads_the_first_and_other_settings_train_anew(found, library, monkeypatch) -> None:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(found.target.parent.parent))

    def refuse(items, description):
        raise AssertionError("trained again")

    assert small_models(refuse, SETTINGS, library) == found
    with pytest.raises(AssertionError, match="trained again"):
        small_models(refuse, replace(SETTINGS, seed=1), library)
    assert not list(found.target.parent.parent.glob(".incomplete-*"))


def _random_decoder() -> LlamaForCausalLM:
    torch.manual_seed(0)
    tokenizer = train_tokenizer([], 257)
    model = DECODER.build(tokenizer)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()

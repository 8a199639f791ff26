"""The contract of drafts by another model: its vocabulary, its cache and its own drafter leave no trace in the text."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import forerun
from forerun.build import build, own_dtype
from forerun.errors import InvalidOptionError, UnknownStrategyError
from forerun.progress import open_progress
from forerun.runtime.drafters.vocabulary import SameVocabulary, vocabulary
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.rows import prompt_rows
from tests.models import FAMILIES

FIXED = forerun.Fixed(12)
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "seed": 4}
TEXT = (
    "The keeper of the lighthouse opened the bottle and read the letter. The letter told of a ship, of the sea, and of "
    "a light that the crew had seen. The keeper lit the lamp and waited for the ship to come home from the sea. "
)
PROMPT = "The keeper of the lighthouse "


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the given number of tokens, or fewer if the text has no more pairs."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made)


@cache
def compiled(family: str, vocabulary: int, seed: int = 0) -> CompiledModel:
    model = FAMILIES[family](vocab_size=vocabulary, seed=seed)
    found = forerun.compile(model, strategy="autoregressive", max_length=192)
    found.tokenizer = tokenizer(vocabulary)
    return found


def drafters(name: str) -> tuple[Any, ...]:
    target, other, small = compiled("llama", 300), compiled("gpt2", 300), compiled("gpt2", 280)
    return {
        "same vocabulary": (forerun.DraftModel(other, vocabulary="same"),),
        "intersection": (forerun.DraftModel(small, vocabulary="intersection"),),
        "text": (forerun.DraftModel(small, vocabulary="text"),),
        "staged": (forerun.DraftModel(other, drafter=forerun.TokenRecycling()),),
        "staged twice": (forerun.DraftModel(other, drafter=forerun.DraftModel(small, drafter=forerun.PromptLookup())),),
        "staged by a part of the draft": (forerun.DraftModel(target, drafter=forerun.EarlyExit(layer=1)),),
        "with others": (forerun.DraftModel(other), forerun.EarlyExit(layer=1), forerun.PromptLookup()),
    }[name]


NAMES = [
    "same vocabulary",
    "intersection",
    "text",
    "staged",
    "staged twice",
    "staged by a part of the draft",
    "with others",
]


@pytest.mark.parametrize("name", NAMES)
def test_bits_are_those_of_plain_decoding(name: str) -> None:
    target = compiled("llama", 300)
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=drafters(name), policy=FIXED))
    prompt = target.tokenizer.encode(PROMPT)  # pyright: ignore
    for options in ({}, SAMPLED):
        expected = target.generate(prompt, 48, return_logits=True, **options)
        for _ in range(2):  # a second request finds nothing of the first
            found = drafting.generate(prompt, 48, return_logits=True, **options)
            assert found.token_ids == expected.token_ids
            assert found.has_bits_of(expected)
            assert found.stats.rows > found.stats.steps, "nothing was proposed"


LETTERS = "abcdefghijklmnopqrstuvwx"


class Alphabet(torch.nn.Module):
    """Writes the alphabet over and over: each of its tokens has one successor."""

    def __init__(self, words: list[str], unused: int, seed: int) -> None:
        super().__init__()
        merges = [("".join(word[:end]), word[end]) for word in words for end in range(1, len(word))]
        names = [*LETTERS, *dict.fromkeys(left + right for left, right in merges)]
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
        vocabulary = {names[each]: number for number, each in enumerate(order)}
        vocabulary |= {f"<unused {number}>": len(names) + number for number in range(unused)}
        bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        bpe.decoder = decoders.Fuse()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
        size = len(vocabulary)
        self.embedding = torch.nn.Embedding(size, size)
        torch.nn.init.zeros_(self.embedding.weight)
        with torch.no_grad():
            for word, following in zip(words, [*words[1:], words[0]], strict=True):
                self.embedding.weight[vocabulary[word], vocabulary[following]] = 9.0
        self.head = torch.nn.Linear(size, size, bias=False)
        torch.nn.init.eye_(self.head.weight)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids))


def alphabet(length: int, unused: int = 0, seed: int = 0) -> CompiledModel:
    """A model whose tokens are `length` letters each."""
    model = Alphabet([LETTERS[at : at + length] for at in range(0, len(LETTERS), length)], unused, seed)
    found = forerun.compile(model, strategy="autoregressive", max_length=256)
    found.tokenizer = model.tokenizer
    return found


@pytest.mark.parametrize(
    ("vocabulary", "draft", "accepted"),
    [
        ("same", lambda: alphabet(2), 5.0),
        ("intersection", lambda: alphabet(2, unused=7, seed=1), 5.0),
        # Four tokens of three letters are six of two, but the draft has no tokens of one or two letters, which it
        # may need to begin with at the end of the target's text.
        ("text", lambda: alphabet(3, seed=2), 3.0),
        ("text", lambda: alphabet(1, seed=3), 2.8),  # four letters are two tokens of two
        ("auto", lambda: alphabet(2, unused=7, seed=1), 5.0),
        ("auto", lambda: alphabet(3, unused=90, seed=2), 3.0),
    ],
)
def test_a_draft_that_writes_the_targets_text_is_accepted(vocabulary: str, draft: Any, accepted: float) -> None:
    target = alphabet(2)
    spec = forerun.DraftModel(draft(), vocabulary=vocabulary, shape=forerun.Shape(deepest=4, beam=1, children=1))
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(spec,), policy=FIXED))
    found = drafting.generate(target.tokenizer.encode("abcdef"), 60, return_logits=True)  # pyright: ignore
    expected = target.generate(target.tokenizer.encode("abcdef"), 60, return_logits=True)  # pyright: ignore
    assert found.text is not None
    assert found.text.startswith("ghijklmnopqrstuvwxabcdefghij")
    assert found.has_bits_of(expected)
    assert found.stats.accepted_length >= accepted


def test_a_named_draft_keeps_lookup_and_recycling() -> None:
    drafters = forerun.strategies.resolve_strategy("draft_model:a/b:c").drafters
    assert drafters == (forerun.PromptLookup(), forerun.TokenRecycling(), forerun.DraftModel("a/b:c"))


def test_a_draft_has_its_files_own_format(tmp_path: Path) -> None:
    file = tmp_path / "draft"
    file.write_bytes(b"GGUF")
    assert own_dtype(file) == own_dtype(str(file)) == "native"
    assert own_dtype(tmp_path) == own_dtype(FAMILIES["llama"]()) == "float32"
    file.write_bytes(b"ONNX")
    assert own_dtype(file) == "float32"
    assert forerun.DraftModel(file).dtype == "auto"


@pytest.mark.parametrize("drafter", [None, forerun.TokenRecycling()])
def test_what_is_longer_in_the_targets_tokens_stays_within_its_length(drafter: Any) -> None:
    """Tokens of three letters draft for tokens of one, up to the last position."""
    target = alphabet(1)
    prompt = target.tokenizer.encode("abc")  # pyright: ignore
    new = target.executable.max_length - len(prompt)
    spec = forerun.DraftModel(alphabet(3, unused=9, seed=2), vocabulary="text", drafter=drafter)
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(spec,), policy=FIXED))
    found = drafting.generate(prompt, new, return_logits=True)
    assert found.has_bits_of(target.generate(prompt, new, return_logits=True))
    assert found.stats.accepted_length > 2


def test_more_rows_than_there_are_slots_are_not_asked_for() -> None:
    target = compiled("llama", 300)
    shape = forerun.Shape(deepest=40, beam=90, children=8)
    for drafter in (forerun.DraftModel(compiled("gpt2", 300), shape=shape), forerun.EarlyExit(1, shape=shape)):
        drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(drafter,), policy=forerun.Fixed(60)))
        assert drafting.generate(list(range(1, 9)), 30).token_ids == target.generate(list(range(1, 9)), 30).token_ids


def test_padded_vocabularies_are_the_same() -> None:
    """A model may have room for more tokens than its tokenizer knows."""
    target, padded = (
        compiled("llama", 300),
        forerun.compile(FAMILIES["gpt2"](vocab_size=310), strategy="autoregressive", max_length=192),
    )
    padded.tokenizer = target.tokenizer
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(forerun.DraftModel(padded),), policy=FIXED))
    assert isinstance(drafting.drafter.vocabulary, SameVocabulary)  # pyright: ignore
    prompt = target.tokenizer.encode(PROMPT)  # pyright: ignore
    assert drafting.generate(prompt, 40).token_ids == target.generate(prompt, 40).token_ids


@pytest.mark.parametrize("larger", ["draft", "target"])
def test_padding_that_tokenizers_name_is_no_difference(larger: str) -> None:
    """GGUF files name the ids that pad a vocabulary; no text is cut into those."""
    small, padded = tokenizer(300), tokenizer(300)
    named = {**padded.get_vocab(), **{f"[PAD{number}]": number for number in range(300, 310)}}
    inner = json.loads(padded.backend_tokenizer.to_str())
    inner["model"]["vocab"] = named
    padded = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(inner)))
    sizes = (300, 310) if larger == "draft" else (310, 300)
    pair = (small, padded) if larger == "draft" else (padded, small)
    assert isinstance(vocabulary("auto", *pair, sizes), SameVocabulary)
    assert not isinstance(vocabulary("auto", small, tokenizer(310), (300, 310)), SameVocabulary)


@pytest.mark.parametrize("beside", [(), (forerun.PromptLookup(),)])
def test_a_token_that_the_draft_has_no_room_for_is_the_next_trees_root(beside: tuple[Any, ...]) -> None:
    """The target has room for more tokens than their tokenizer knows, and writes them."""
    small = compiled("gpt2", 280)
    target = forerun.compile(FAMILIES["llama"](vocab_size=600), strategy="autoregressive", max_length=192)
    target.tokenizer = small.tokenizer
    drafters = (forerun.DraftModel(small, vocabulary="same"), *beside)
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=drafters, policy=FIXED))
    expected = target.generate([5, 9, 500], 40, return_logits=True, **SAMPLED)
    assert max(expected.token_ids) >= 280
    found = drafting.generate([5, 9, 500], 40, return_logits=True, **SAMPLED)
    assert found.has_bits_of(expected)
    assert found.stats.rows > found.stats.steps


def test_a_staged_draft_with_the_targets_weights_is_right() -> None:
    target = compiled("llama", 300)
    draft = forerun.DraftModel(target, drafter=forerun.TokenRecycling(), shape=forerun.Shape(deepest=4, children=1))
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(draft,), policy=FIXED))
    assert drafting.generate(target.tokenizer.encode(PROMPT), 40).stats.accepted_length == 5.0  # pyright: ignore


def test_the_drafts_cache_follows_the_commits() -> None:
    """A draft evaluates each token once if all it proposes is accepted, plus the launches of each iteration."""
    target = compiled("llama", 300)
    draft = forerun.DraftModel(target, shape=forerun.Shape(deepest=4, beam=1, children=1))
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(draft,), policy=FIXED))
    engine = drafting.drafter.engine  # pyright: ignore
    rows: list[int] = []
    run = engine.run

    def counted(batch: Any, *arguments: Any, **options: Any) -> Any:
        rows.append(len(batch.tokens))
        return run(batch, *arguments, **options)

    engine.run = counted
    found = drafting.generate(target.tokenizer.encode(PROMPT), 40)  # pyright: ignore
    assert found.stats.accepted_length == 5.0
    # First the prompt, its last tokens with the root; then in each iteration the bonus token's parent, which the draft
    # only proposed, with the root.
    assert max(rows[2:]) == 2
    assert len(rows) == 1 + 4 * found.stats.steps


def test_what_does_not_fit_is_refused() -> None:
    target, small = compiled("llama", 300), compiled("gpt2", 280)
    bare = forerun.compile(FAMILIES["gpt2"](vocab_size=280), strategy="autoregressive", max_length=192)

    def build(draft: forerun.DraftModel) -> None:
        forerun.with_strategy(target, forerun.TreeSpec(drafters=(draft,), policy=FIXED))

    with pytest.raises(InvalidOptionError, match="not the same vocabulary"):
        build(forerun.DraftModel(small, vocabulary="same"))
    with pytest.raises(InvalidOptionError, match="tokenizers"):
        build(forerun.DraftModel(bare))
    with pytest.raises(InvalidOptionError, match="does not know the way 'bytes'"):
        build(forerun.DraftModel(small, vocabulary="bytes"))
    with pytest.raises(UnknownStrategyError, match="draft_model:PATH"):
        forerun.with_strategy(target, "draft_model")


def test_a_text_that_outgrows_the_draft_goes_on_without_it() -> None:
    target = compiled("llama", 300)
    short = forerun.compile(FAMILIES["llama"](vocab_size=300), strategy="autoregressive", max_length=32)
    drafting = forerun.with_strategy(target, forerun.TreeSpec(drafters=(forerun.DraftModel(short),), policy=FIXED))
    prompt = torch.arange(1, 20)
    found = drafting.generate(prompt, 60)
    assert found.token_ids == target.generate(prompt, 60).token_ids
    assert found.stats.rows > found.stats.steps, "it never drafted"


@pytest.mark.parametrize(
    ("family", "target"),
    [
        ("llama", "cpu"),
        pytest.param("gpt2", "cpu", marks=pytest.mark.slow),
        pytest.param("gemma2", "cpu", marks=pytest.mark.slow),
        ("gpt2", "c"),
        ("gemma2", "reference"),
    ],
)
def test_a_short_head_gives_the_first_tokens_their_logits(family: str, target: str) -> None:
    """With a matrix of its own, one that embeds tokens as well, and a cap on the logits."""
    found: list[tuple[Any, Any]] = []
    for tokens in (0, 70):
        model = FAMILIES[family](vocab_size=300)
        executable = build(model, "float32", target, 64, None, open_progress(), tokens=tokens).executable
        engine = Engine(executable)
        with engine.sequence(16) as sequence:
            engine.cache.reserve(sequence, 16)
            rows = prompt_rows(sequence, np.arange(9, dtype=np.int32) * 30, np.arange(9, dtype=np.int32))
            result = engine.run(rows)
            found.append((result.logits.copy(), result.candidates.copy()))
    (whole, _), (short, candidates) = found
    assert short.shape == (9, 70)
    if target == "reference":  # torch multiplies matrices of other sizes in another order
        np.testing.assert_allclose(short, whole[:, :70], rtol=1e-4, atol=1e-4)
    else:
        assert np.array_equal(short, whole[:, :70])
    assert np.array_equal(candidates[:, 0], whole[:, :70].argmax(1))


def test_a_draft_with_a_short_head_proposes_only_tokens_that_it_has(tmp_path: Path) -> None:
    """It still reads the others."""
    target = compiled("llama", 300)
    FAMILIES["gpt2"](vocab_size=300).save_pretrained(tmp_path)
    tokenizer(300).save_pretrained(tmp_path)
    drafting = forerun.with_strategy(
        target, forerun.TreeSpec(drafters=(forerun.DraftModel(str(tmp_path), tokens=120),), policy=FIXED)
    )
    met = drafting.drafter.vocabulary  # pyright: ignore
    assert drafting.drafter.engine.executable.vocabulary == 120  # pyright: ignore
    assert isinstance(met, SameVocabulary)
    assert met.follow([5, 250]) == [5, 250]
    expected = target.generate([5, 250, 9], 40, return_logits=True, **SAMPLED)
    assert max(expected.token_ids) >= 120
    assert drafting.generate([5, 250, 9], 40, return_logits=True, **SAMPLED).has_bits_of(expected)

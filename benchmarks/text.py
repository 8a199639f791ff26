"""The small models' training text, Python's own library on this machine, and byte-level vocabularies for it."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END = "<|end|>"  # between two files
HELD_OUT = 12  # one file in this many is never trained on
LEFT_OUT = frozenset({"site-packages", "test", "tests", "idle_test", "encodings", "__pycache__"})
# Name prefixes of files that an installation writes about its build machine.
BUILT = ("_sysconfigdata", "config-")
PROMPT_TOKENS = (64, 128)
START_LINE = 20  # a prompt begins below a file's licence, if there is room
LONGEST_LINE = 400
ATTEMPTS = 8  # to find a passage in a file


@dataclass(frozen=True)
class Source:
    """A file of the library: its path within it, and its text."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.name}\n{self.text}".encode()).hexdigest()

    @property
    def held_out(self) -> bool:
        """Decided by name alone, so that a file stays on its side whatever else is installed."""
        return int(hashlib.sha256(self.name.encode()).hexdigest(), 16) % HELD_OUT == 0


@dataclass(frozen=True)
class Prompt:
    """The start of a passage that no model has seen, in the target's tokens and as text."""

    source: str
    text: str
    tokens: list[int]


def python_sources(root: Path | None = None) -> list[Source]:
    """The library's modules and its documentation topics, by name; without tests, tables and files not in UTF-8."""
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    found: list[Source] = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).parts
        if LEFT_OUT.intersection(parts) or any(part.startswith(BUILT) for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip() and max(map(len, text.splitlines())) <= LONGEST_LINE:
            found.append(Source("/".join(parts), text))
    return sorted(found, key=lambda source: source.name)


def split(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The sources to train on, and those held out."""
    return [each for each in sources if not each.held_out], [each for each in sources if each.held_out]


def train_tokenizer(sources: Sequence[Source], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary of exactly that size; decoding returns exactly the encoded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((source.text for source in sources), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=False)


def encode(tokenizer: PreTrainedTokenizerFast, sources: Sequence[Source]) -> np.ndarray:
    """All texts one after another, [tokens], with an end token after each."""
    encoded = tokenizer.backend_tokenizer.encode_batch([source.text for source in sources], add_special_tokens=False)
    end = [tokenizer.eos_token_id]
    return np.concatenate([np.array(each.ids + end, dtype=np.int64) for each in encoded])


def prompts(tokenizer: PreTrainedTokenizerFast, sources: Sequence[Source], count: int, seed: int) -> list[Prompt]:
    """`count` passages of 64 to 128 tokens, each from the start of a line, spread evenly over the sources' names.

    A passage's text encodes to its tokens again, so that a model with another vocabulary reads the same prompt.
    """
    random = np.random.default_rng(seed)
    tries = ((_prompt(tokenizer, source, random) for _ in range(ATTEMPTS)) for source in sources)
    candidates = [found for attempts in tries if (found := next(filter(None, attempts), None)) is not None]
    if len(candidates) < count:
        raise ValueError(f"only {len(candidates)} of {len(sources)} held-out files give a prompt: hold out more files.")
    return [candidates[index * len(candidates) // count] for index in range(count)]


def _prompt(tokenizer: PreTrainedTokenizerFast, source: Source, random: np.random.Generator) -> Prompt | None:
    lines = source.text.splitlines(keepends=True)
    start = int(random.integers(min(START_LINE, len(lines)), len(lines) + 1))
    length = int(random.integers(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1))
    ids = tokenizer.encode("".join(lines[start:]), add_special_tokens=False)[:length]
    text = tokenizer.decode(ids)
    if len(ids) < length or tokenizer.encode(text, add_special_tokens=False) != ids:
        return None
    return Prompt(source.name, text, ids)

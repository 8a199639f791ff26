"""One model type of transformers, tried: its greedy tokens, forerun's, and the contract."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

import forerun
from benchmarks.tiny_models import tiny_model
from forerun.codegen.backends import BACKENDS
from forerun.errors import ForerunError
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify

PROMPTS = ([7, 200, 31, 5, 99, 31, 5, 99, 140], [*range(3, 131, 8), 17, 17])
NEW_TOKENS = 32
START = {"bos_token_id": 1, "decoder_start_token_id": 1}
PADDING = 0
MAX_LENGTH = 128
CASES = 5
VARIED = 8
"""Different tokens that the greedy texts of a model must have: otherwise other weights are tried."""
ATTEMPTS = ((0, True), (0, False), (1, False), (2, False), (3, False))
"""Seeds, and whether the head may be tied to the embedding, which makes some tiny models repeat a token forever."""


@dataclass(frozen=True)
class Tried:
    """What came of a type; `reason` is the first sentence of an error, or the difference."""

    model_type: str
    outcome: str
    reason: str = ""
    parameters: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def try_type(model_type: str, target: str = "cpu") -> Tried:
    """Builds the tiny model, decodes with transformers and with forerun, and certifies the contract."""
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    os.environ["FORERUN_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        model, expected = varied_model(model_type)
    except Exception as error:
        return Tried(model_type, "not run by transformers", _said(error))
    size = sum(each.numel() for each in model.parameters())
    try:
        outcome, reason = compared(model, expected, target)
    except ForerunError as error:
        outcome, reason = "refused", str(error).splitlines()[0]
    except Exception as error:
        outcome, reason = "crash", _said(error)
    return Tried(model_type, outcome, reason, size, time.perf_counter() - start)


def varied_model(model_type: str) -> tuple[PreTrainedModel, list[list[int]]]:
    """The first of the attempts whose greedy texts vary enough, or the most varied, and its texts by transformers.

    Texts with the padding token do not count: some types number the positions after it differently with a cache.
    """
    best: tuple[int, PreTrainedModel, list[list[int]]] | None = None
    for seed, tied in ATTEMPTS:
        model = tiny_model(model_type, seed, tied)
        texts = [greedy(model, prompt) for prompt in PROMPTS]
        variety = 0 if any(PADDING in each for each in texts) else min(len({*each}) for each in texts)
        if best is None or variety > best[0]:
            best = variety, model, texts
        if variety >= VARIED:
            break
    assert best is not None
    return best[1:]


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Transformers' own greedy continuation."""
    ids = torch.tensor([prompt])
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, num_return_sequences=1, pad_token_id=PADDING, **START
    )
    settings.eos_token_id = None
    with torch.no_grad():
        found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    text = found[0, len(prompt) :].tolist()
    if len(text) != NEW_TOKENS:
        raise ValueError(f"generate gives {len(text)} tokens where it is asked for {NEW_TOKENS}")
    return text


def compared(model: Any, expected: list[list[int]], target: str) -> tuple[str, str]:
    """The outcome and the reason, once transformers has given its texts."""
    strategy = forerun.TreeSpec(policy=forerun.Fixed(8))
    compiled = forerun.compile(
        model, strategy, target=target, max_length=MAX_LENGTH, progress=SilentProgress(), generation_config=None
    )
    for prompt, text in zip(PROMPTS, expected, strict=True):
        found = compiled.generate(prompt, NEW_TOKENS, eos_token_id=[]).token_ids
        if found != text:
            at = next(at for at, pair in enumerate(zip(found, text, strict=True)) if pair[0] != pair[1])
            return "wrong token", difference(model, [*prompt, *text[:at]], found[at], text[at], at)
    if not BACKENDS[target].exact:  # such a back end shows in seconds whether the tokens are right
        return "same tokens", ""
    report = certify(compiled.executable, cases=CASES)
    return ("exact", "") if report.exact else ("contract break", str(report))


def difference(model: Any, tokens: list[int], found: int, expected: int, at: int) -> str:
    """Describes the first token that differs, with what transformers' logits without a cache say of it."""
    with torch.no_grad():
        try:
            output = model(torch.tensor([tokens]), use_cache=False)
        except TypeError:
            output = model(torch.tensor([tokens]))
    logits = output.logits[0, -1]
    margin = float(logits[expected] - logits[found])
    own = int(logits.argmax())
    says = "" if own == expected else f", though transformers without a cache chooses {own}"
    return f"token {at} is {found}, not {expected}: the margin is {margin:.2g}{says}"


def _said(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if 'validat' in lines[0] else lines[0]}" if lines else repr(error)

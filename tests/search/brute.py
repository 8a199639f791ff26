"""Searches without a cache, an engine or float32: what a search over the oracle must find."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.request import Request
from forerun.runtime.sampling import choose_token
from tests.runtime.oracle import Oracle


class Smooth(Oracle):
    """An oracle whose logits do not tie."""

    def logits_of(self, token: int, digest: int) -> np.ndarray:
        if digest not in self.known:
            noise = np.random.default_rng(digest).standard_normal(self.vocabulary) * self.noise
            self.known[digest] = (self.bigram[token] + noise).astype(np.float32)
        return self.known[digest]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.longdouble)
    return exact - np.log(np.exp(exact).sum())


def all_texts(oracle: Oracle, prompt: list[int], length: int, stop: set[int]) -> Iterator[tuple[list[int], float]]:
    """Every text that ends with its first stop token or with its last possible one, and its log-probability."""
    for tokens in product(range(oracle.vocabulary), repeat=length):
        ends = [at for at, token in enumerate(tokens) if token in stop]
        if ends and any(tokens[ends[0] + 1 :]):
            continue  # the same text as the one that goes on with zeros
        text = list(tokens[: ends[0] + 1] if ends else tokens)
        found = [log_softmax(oracle.logits([*prompt, *text[:at]]))[token] for at, token in enumerate(text)]
        yield text, float(sum(found))


@dataclass
class Row:
    tokens: list[int]
    score: float


def diverse_beams(
    oracle: Oracle, prompt: list[int], length: int, width: int, groups: int, penalty: float, hooks: Sequence[Hook] = ()
) -> list[tuple[list[int], float]]:
    """Algorithm 1 of arXiv 1610.02424 with the Hamming diversity, texts of one length; one group is beam search."""
    beams = [[Row([], 0.0)] for _ in range(groups)]
    for at in range(length):
        taken: list[int] = []
        for number, group in enumerate(beams):
            candidates: list[Row] = []
            for row in group:
                scores = scored(oracle, prompt, row.tokens, length, hooks)
                for token in range(oracle.vocabulary):
                    penalized = scores[token] - penalty * taken.count(token)
                    candidates.append(Row([*row.tokens, token], row.score + penalized))
            beams[number] = sorted(candidates, key=lambda row: -row.score)[: width // groups]
            taken += [row.tokens[at] for row in beams[number]]
    rows = sorted((row for group in beams for row in group), key=lambda row: -row.score)
    return [(row.tokens, float(row.score / length)) for row in rows]


def scored(oracle: Oracle, prompt: list[int], tokens: list[int], length: int, hooks: Sequence[Hook]) -> np.ndarray:
    scores: Any = log_softmax(oracle.logits([*prompt, *tokens]))
    for hook in hooks:
        state = hook.begin(prompt)
        for token in tokens:
            state = hook.advance(state, token)
        place = Place(len(prompt) + len(tokens), len(tokens), length - len(tokens))
        scores = hook.scores(state, scores.astype(np.float32), place)
    return scores


def sampled(oracle: Oracle, request: Request) -> tuple[list[int], list[Float32]]:
    """A text by plain decoding, and the logits that each token was chosen by."""
    tokens, rows = list(request.prompt), []
    while len(rows) < request.max_new_tokens:
        rows.append(oracle.logits(tokens))
        tokens.append(choose_token(rows[-1], request.sampling, request.identifier, len(tokens)))
        if tokens[-1] in request.stop:
            break
    return tokens[len(request.prompt) :], rows


def grown(
    oracle: Oracle,
    request: Callable[[list[int], int, int], Request],
    border: Callable[[list[int]], int | None],
    score: Callable[[list[int]], float],
    candidates: int,
    keep: int,
    length: int,
) -> list[tuple[list[int], float]]:
    """A search by segments. `request` is made of new tokens, left ones and an identifier; `border` says where new
    tokens of a segment end."""
    texts: list[tuple[list[int], bool]] = [([], False)]
    begun, first = 0, True
    while not all(ended for _, ended in texts):
        pool: list[tuple[list[int], bool]] = [each for each in texts if each[1]]
        for tokens, _ in [each for each in texts if not each[1]]:
            for _ in range(candidates if first else candidates // keep):
                more, _ = sampled(oracle, request(tokens, length - len(tokens), begun))
                begun += 1
                cut = border(more)
                ends = cut is None or (cut == len(more) and (more[-1] in request([], 1, 0).stop))
                text = tokens + (more if cut is None else more[:cut])
                pool.append((text, ends or len(text) == length))
        texts = sorted(pool, key=lambda each: -score(each[0]))[:keep]
        first = False
    return [(tokens, score(tokens)) for tokens, _ in texts]


def differences(texts: Sequence[Sequence[int]]) -> int:
    """At how many places each text differs from the next."""
    return sum(a != b for one, other in pairwise(texts) for a, b in zip(one, other, strict=False))

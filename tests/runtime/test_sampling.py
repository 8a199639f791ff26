"""Token choice has transformers' meaning, and depends on nothing but its arguments."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from forerun.errors import InvalidOptionError
from forerun.runtime.sampling import SamplingSettings, filtered, keep_top_p, random_row, sample_token

SETTINGS = [
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 5},
    {"top_p": 0.6},
    {"temperature": 0.9, "top_k": 8, "top_p": 0.8},
    {"top_k": 1},
    {"top_p": 1e-6},
    {"top_k": 1000, "top_p": 1.0},
    {"top_k": 0},
    {"top_p": 0.0},
    {"top_k": 0, "top_p": 0.0},
]


def warped(logits: np.ndarray, options: dict) -> np.ndarray:
    """transformers' probabilities."""
    scores = torch.from_numpy(logits)[None]
    if options.get("temperature", 1.0) != 1.0:
        scores = TemperatureLogitsWarper(options["temperature"])(None, scores)
    if options.get("top_k"):
        scores = TopKLogitsWarper(options["top_k"])(None, scores)
    if options.get("top_p") is not None and options["top_p"] < 1:
        scores = TopPLogitsWarper(options["top_p"])(None, scores)
    return scores.double().softmax(-1)[0].numpy()


WARPERS = {
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
"""In transformers' order."""
share = st.floats(1e-4, 0.9999)


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 60),
    scale=st.sampled_from([0.1, 1.0, 5.0, 50.0]),
    ties=st.booleans(),
    excluded=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    options=st.fixed_dictionaries(
        {},
        optional={
            "top_k": st.integers(1, 70),
            "top_p": share,
            "min_p": share,
            "typical_p": share,
            "epsilon_cutoff": st.floats(1e-4, 0.3),
            "eta_cutoff": st.floats(1e-4, 0.3),
        },
    ),
)
def test_filters_are_transformers(seed, size, scale, ties, excluded, temperature, options):
    random = np.random.default_rng(seed)
    logits = random.standard_normal(size) * scale
    if ties:
        options = {name: value for name, value in options.items() if name != "top_p"}  # sorted otherwise there
        logits = np.round(logits * 4) / 4
    if excluded:
        logits[random.permutation(size)[: size // 2]] = -np.inf
    logits = logits.astype(np.float32)
    scores, kept = filtered(logits, SamplingSettings(do_sample=True, temperature=temperature, **options))
    expected = TemperatureLogitsWarper(temperature)(None, torch.from_numpy(logits.astype(np.float64))[None])
    for name, warper in WARPERS.items():
        if name in options:
            expected = warper(options[name])(None, expected)
    found = kept[scores[kept] > -np.inf]
    assert found.tolist() == torch.nonzero(expected[0] > -np.inf)[:, 0].tolist()
    assert np.array_equal(scores[found], expected[0, found].numpy())


@pytest.mark.parametrize("largest", [np.inf, -np.inf])
def test_filters_of_infinite_scores(largest: float):
    logits = np.array([0, largest, 1, largest], np.float32)
    for name in WARPERS:
        chosen = SamplingSettings(do_sample=True, **{name: 2 if name == "top_k" else 0.2})
        token = sample_token(logits, chosen, 0, 5)
        assert token in ((1, 3) if largest > 0 else (0, 2))


@pytest.mark.parametrize("options", SETTINGS)
def test_distribution_is_transformers(options: dict):
    logits = np.random.default_rng(1).normal(size=40).astype(np.float32) * 2
    expected = warped(logits, options)
    settings = SamplingSettings(do_sample=True, seed=7, **options)
    draws = 6000
    counts = np.bincount([sample_token(logits, settings, 0, position) for position in range(draws)], minlength=40)
    assert not counts[expected == 0].any()
    expected = expected * draws
    tail = (expected > 0) & (expected < 5)
    keep = expected >= 5
    observed = np.append(counts[keep], counts[tail].sum())
    wanted = np.append(expected[keep], expected[tail].sum())
    chi_square = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9)).sum()
    freedom = len(observed) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * max(freedom, 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.sampled_from([3, 50, 1500, 5000]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    p=st.floats(0.01, 0.999),
)
def test_nucleus_is_the_smallest_that_reaches_p(seed: int, size: int, scale: float, p: float):
    scores = np.round(np.random.default_rng(seed).normal(size=size) * scale * 4) / 4
    kept = keep_top_p(scores, p)
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-scores, kind="stable")
    total = np.cumsum(probabilities[order])
    count = int(np.searchsorted(total, p)) + 1
    assert abs(len(kept) - min(count, size)) <= (np.abs(total - p) < 1e-9).any()
    assert set(order[: len(kept)].tolist()) == set(kept.tolist())


def test_nucleus_that_reaches_p_exactly():
    assert keep_top_p(np.zeros(4), 0.5).tolist() == [0, 1]
    assert keep_top_p(np.zeros(4), 0.51).tolist() == [0, 1, 2]
    assert keep_top_p(np.array([0.0, 0.0, 9.0]), 1e-9).tolist() == [2]


def test_random_numbers_are_functions_of_seed_sequence_position_and_token():
    row = random_row(1, 2, 3, 100)
    assert np.array_equal(row[:37], random_row(1, 2, 3, 37))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.any(row == random_row(*other, 100))


def test_sampling_does_not_depend_on_where_the_logits_lie():
    random = np.random.default_rng(0)
    settings = SamplingSettings(do_sample=True, temperature=0.8, top_p=0.9)
    for position in range(20):
        logits = random.normal(size=5003).astype(np.float32)
        buffer = np.empty(5003 + 16, np.float32)
        tokens = set()
        for offset in range(16):
            buffer[offset : offset + 5003] = logits
            tokens.add(sample_token(buffer[offset : offset + 5003], settings, 0, position))
        assert len(tokens) == 1


def test_forbidden_tokens_are_never_drawn():
    logits = np.full(20, -np.inf, np.float32)
    logits[[3, 8]] = 0
    for options in ({}, {"top_k": 5}, {"top_p": 0.9}):
        settings = SamplingSettings(do_sample=True, **options)
        assert {sample_token(logits, settings, 0, position) for position in range(50)} == {3, 8}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"do_sample": True, "temperature": 0.0}, "do_sample=False"),
        ({"do_sample": True, "temperature": -1.0}, "do_sample=False"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"do_sample": True, "top_p": -0.1}, "top_p"),
        ({"do_sample": True, "top_p": float("nan")}, "top_p must be a number"),
        ({"do_sample": True, "top_p": 1.1}, "top_p"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": "yes"}, "do_sample must be True or False"),
        ({"do_sample": 1}, "do_sample must be True or False"),
        ({"do_sample": True, "top_k": 1.5}, "top_k"),
        ({"do_sample": True, "top_k": "3"}, "top_k must be an integer"),
        ({"do_sample": True, "top_k": True}, "top_k must be an integer"),
        ({"do_sample": True, "top_p": "0.5"}, "top_p must be a number"),
        ({"do_sample": True, "temperature": "1"}, "temperature must be a number"),
        ({"do_sample": True, "temperature": None}, "temperature must be a number"),
        ({"do_sample": True, "temperature": 1e-320}, "at least 1e-200"),
        ({"do_sample": True, "temperature": float("inf")}, "finite"),
        ({"temperature": "1"}, "temperature must be a number"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": None}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"temperature": 0.7}, "temperature needs do_sample=True"),
        ({"top_k": 5, "top_p": 0.9}, "top_k and top_p need do_sample=True"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict, sentence: str):
    with pytest.raises(InvalidOptionError, match=sentence):
        SamplingSettings(**options)


def test_the_least_temperature_takes_the_largest_logit():
    settings = SamplingSettings(do_sample=True, temperature=1e-200, top_p=0.9)
    largest = np.finfo(np.float32).max
    assert sample_token(np.array([0, largest, -largest, -np.inf], np.float32), settings, 0, 0) == 1


def test_numbers_of_numpy_are_kept_as_those_of_python():
    settings = SamplingSettings(True, np.float32(0.5), np.int8(100), np.float64(0.25), np.uint64(2**64 - 1))
    assert settings == SamplingSettings(True, 0.5, 100, 0.25, 2**64 - 1)
    assert {type(settings.temperature), type(settings.top_p)} == {float}
    assert {type(settings.top_k), type(settings.seed)} == {int}

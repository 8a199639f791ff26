"""The contract: whatever is drafted and however trees are cut, text and logits are those of plain decoding."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle

from forerun.errors import TooLongError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Draw
from forerun.runtime.generation import decode
from forerun.runtime.policy import CostAware, Fixed, Policy
from forerun.runtime.request import Request, Step
from forerun.runtime.sampling import SamplingSettings, sample_token
from forerun.runtime.tree import TreeBuilder, chain


class RandomDrafter(Drafter):
    """Any tree within the budget; `oracle`'s own continuation is put into it every so often."""

    def __init__(self, seed: int, oracle: Oracle) -> None:
        self.random = np.random.default_rng(seed)
        self.oracle = oracle

    def propose(self, context: Context, budget: Budget) -> Proposal:
        builder = TreeBuilder(context.tokens[-1])
        histories = [context.tokens]
        for _ in range(int(self.random.integers(0, 3 * budget.rows))):
            parent = int(self.random.integers(len(builder)))
            if len(builder) == budget.rows or builder.depths[parent] == budget.depth:
                continue
            right = int(self.oracle.logits(histories[parent]).argmax())
            token = right if self.random.random() < 0.6 else int(self.random.integers(self.oracle.vocabulary))
            row = builder.add(parent, token, float(self.random.random()))
            if row == len(histories):
                histories.append([*histories[parent], token])
        return Proposal(builder.build())


def reference(oracle: Oracle, request: Request) -> tuple[list[int], np.ndarray]:
    """Plain decoding with neither cache nor engine."""
    tokens, logits = list(request.prompt), []
    while len(logits) < request.max_new_tokens and not (logits and tokens[-1] in request.stop):
        logits.append(oracle.logits(tokens))
        if request.sampling.do_sample:
            tokens.append(sample_token(logits[-1], request.sampling, request.identifier, len(tokens)))
        else:
            tokens.append(int(logits[-1].argmax()))
    return tokens[len(request.prompt) :], np.stack(logits)


def collect(steps: Sequence[Step]) -> tuple[list[int], np.ndarray]:
    tokens = [token for step in steps for token in step.tokens]
    return tokens, np.concatenate([step.logits for step in steps if step.logits is not None])


def drafters(oracle: Oracle, seed: int) -> list[Drafter]:
    recycling = TokenRecycling(oracle.vocabulary, candidates=4, wants_prompt_rows=seed % 2 == 1)
    return [
        Drafter(),
        RandomDrafter(seed, oracle),
        PromptLookup(longest=3, places=4),
        recycling,
        Merged([PromptLookup(), TokenRecycling(oracle.vocabulary), RandomDrafter(seed, oracle)]),
    ]


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, 11), min_size=1, max_size=24),
    max_new_tokens=st.integers(1, 24),
    sampling=st.one_of(
        st.just(SamplingSettings()),
        st.builds(
            SamplingSettings,
            do_sample=st.just(True),
            temperature=st.sampled_from([0.3, 0.8, 1.0, 1.7]),
            top_k=st.sampled_from([None, 1, 3, 10, 100]),
            top_p=st.sampled_from([None, 0.2, 0.8, 1.0]),
            seed=st.integers(0, 5),
        ),
    ),
    stop=st.frozensets(st.integers(0, 11), max_size=2),
    identifier=st.integers(0, 3),
    keep_logits=st.just(True),
)
policies = st.sampled_from(
    [
        Fixed(1),
        Fixed(6),
        Fixed(16),
        CostAware(CostModel((1, 16), (1.0, 1.1)), most=16),
        CostAware(CostModel((1, 16), (1.0, 3.0)), most=12),
    ]
)


@settings(max_examples=120, deadline=None)
@given(request=requests, policy=policies, seed=st.integers(0, 20), noise=st.sampled_from([0.2, 1.0, 3.0]))
def test_same_text_and_logits_as_plain_decoding(request: Request, policy: Policy, seed: int, noise: float):
    oracle = Oracle(vocabulary=12, seed=seed, noise=noise)
    engine = Engine(oracle)
    tokens, logits = reference(oracle, request)
    for drafter in drafters(oracle, seed):
        for _ in range(2):  # the second time with what the drafter has learned
            got_tokens, got_logits = collect(list(decode(engine, request, drafter, policy)))
            assert got_tokens == tokens
            assert np.array_equal(got_logits.view(np.uint32), logits.view(np.uint32))
    assert engine.cache.free_positions >= oracle.max_length


def test_drafts_are_accepted_and_moved():
    oracle = Oracle(vocabulary=12, noise=0.3, max_length=400)
    engine = Engine(oracle)
    request = Request([1, 2, 3], max_new_tokens=200)
    drafter = Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)])
    list(decode(engine, request, RandomDrafter(1, oracle), Fixed(8)))
    steps = list(decode(engine, request, drafter, Fixed(8)))
    assert len(steps) < 100
    assert oracle.copies > 0


class Deepest(Drafter):
    """A chain as deep as allowed."""

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return Proposal(chain(context.tokens[-1], [1] * min(budget.depth, budget.rows - 1)))


@pytest.mark.parametrize("new", [1, 2, 9, 30])
def test_no_row_is_evaluated_past_the_end(new: int):
    oracle = Oracle(max_length=10 + new - 1)  # the oracle refuses later positions; the last token needs none
    steps = list(decode(Engine(oracle), Request([1] * 10, max_new_tokens=new), Deepest(), Fixed(16)))
    assert oracle.steps[0] == 9
    assert steps[1].rows == min(new, 1 + oracle.max_path)


def test_plain_decoding_is_one_row_a_step():
    oracle = Oracle()
    steps = list(decode(Engine(oracle), Request([1, 2], max_new_tokens=9), Drafter(), Fixed(8)))
    assert [step.rows for step in steps] == [0] + [1] * 9
    assert [step.finished for step in steps] == [False] * 9 + [True]


def test_prompt_in_chunks_of_any_size():
    oracle = Oracle(max_length=128)
    tokens = np.arange(50, dtype=np.int32) % oracle.vocabulary
    for chunk in (1, 3, 16, None, 99):
        engine = Engine(oracle)
        with engine.sequence(60) as sequence:
            engine.prefill(sequence, tokens, chunk)
            root = TreeBuilder(5).build()
            [result] = engine.step([sequence], [root])
            assert np.array_equal(result.logits(0), oracle.logits([*tokens.tolist(), 5]))


def test_prompt_chunks_may_be_larger_than_trees():
    oracle = Oracle(max_rows=16, max_outputs=5)
    request = Request([1, 2, 3] * 8, max_new_tokens=20)
    plain = collect(list(decode(Engine(Oracle()), Request(request.prompt, 20, keep_logits=True), Drafter(), Fixed(1))))
    for wanted in (False, True):
        oracle.steps.clear()
        drafter = TokenRecycling(oracle.vocabulary, wants_prompt_rows=wanted)
        steps = list(decode(Engine(oracle), request, drafter, Fixed(16)))
        assert [token for step in steps for token in step.tokens] == plain[0]
        assert oracle.steps[0] == (5 if wanted else 16)
        assert max(step.rows for step in steps) == 5


def test_several_sequences_share_a_step():
    oracle = Oracle(max_rows=64, max_outputs=64, max_length=64)
    engine = Engine(oracle, blocks=100)
    random = RandomDrafter(4, oracle)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    with engine.sequence(40) as a, engine.sequence(40) as b, engine.sequence(40) as c:
        sequences: list[CachedSequence] = [a, b, c]
        contexts = [Context(list(prompt)) for prompt in prompts]
        for sequence, prompt in zip(sequences, prompts, strict=True):
            engine.prefill(sequence, np.array(prompt[:-1], np.int32))
        for _ in range(6):
            trees = [random.propose(context, Budget(12, 4)).tree for context in contexts]
            results = engine.step(sequences, trees)
            paths = []
            for context, tree, result in zip(contexts, trees, results, strict=True):
                for row in range(len(tree)):
                    history = context.tokens[:-1] + tree.token[tree.path(row)].tolist()
                    assert np.array_equal(result.logits(row), oracle.logits(history))
                    assert result.candidates[row, 0] == oracle.logits(history).argmax()
                paths.append(tree.path(int(tree.depth.argmax())))
            engine.commit(sequences, results, paths)
            for context, tree, path in zip(contexts, trees, paths, strict=True):
                context.tokens.extend([*tree.token[path[1:]].tolist(), 3])


def test_too_many_rows_and_too_deep_trees_are_refused():
    engine = Engine(Oracle(max_rows=4, max_path=3))
    star, tall = TreeBuilder(0), TreeBuilder(0)
    for token in range(4):
        star.add(0, token, 0.5)
        tall.add(len(tall) - 1, token, 0.5)
    with engine.sequence(20) as sequence:
        with pytest.raises(TooLongError, match="5 rows"):
            engine.step([sequence], [star.build()])
        engine.executable.max_rows = 8
        with pytest.raises(TooLongError, match="depth 4"):
            engine.step([sequence], [tall.build()])


def test_closing_the_iterator_frees_the_cache():
    engine = Engine(Oracle())
    free = engine.cache.free_positions
    drafter = PromptLookup()
    steps = decode(engine, Request([1, 2, 3], max_new_tokens=20), drafter, Fixed(4))
    next(steps)
    next(steps)
    assert engine.cache.free_positions < free
    steps.close()
    assert engine.cache.free_positions == free
    assert not drafter._indices


class DrawingOracle(Oracle):
    """Samples by itself, and then does not reveal its logits."""

    def run(self, entry, state, rows, hidden=None, draws=None):
        result = super().run(entry, state, rows, hidden)
        if draws is None or draws == [None]:
            return result
        self.drawn = getattr(self, "drawn", 0) + len(rows.outputs)
        positions, sequences = rows.positions[rows.outputs], rows.sequences[rows.outputs]
        found: list[int] = []
        for row, sequence, position in zip(result.logits, sequences, positions, strict=True):
            draw = draws[sequence]
            settings = SamplingSettings(do_sample=True, temperature=draw.temperature, seed=draw.seed)
            found.append(sample_token(row, settings, draw.identifier, int(position) + 1))
        return replace(result, logits=np.full_like(result.logits, np.nan), drawn=np.array(found, np.int32))


@settings(max_examples=60, deadline=None)
@given(request=requests, seed=st.integers(0, 20))
def test_an_executable_that_draws_gives_the_same_text(request: Request, seed: int):
    """The executable samples exactly where every token is sampled from all of its logits."""
    request = replace(request, keep_logits=False)
    oracle = DrawingOracle(vocabulary=12, seed=seed, draws=True)
    tokens, _ = reference(Oracle(vocabulary=12, seed=seed), request)
    engine = Engine(oracle)
    for drafter in drafters(oracle, seed):
        steps = list(decode(engine, request, drafter, Fixed(6)))
        assert [token for step in steps for token in step.tokens] == tokens
    sampling = request.sampling
    filtered = sampling.top_k is not None or sampling.top_p is not None
    assert hasattr(oracle, "drawn") == (sampling.do_sample and not filtered)


def test_each_sequence_of_a_step_draws_by_its_own_settings():
    oracle = DrawingOracle(vocabulary=12, draws=True)
    engine = Engine(oracle)
    ways = [Draw(3, 0, 1.7), Draw(3, 1, 1.7)]
    with engine.sequence(12) as first, engine.sequence(12) as second:
        for sequence, length in ((first, 4), (second, 5)):
            engine.prefill(sequence, np.arange(length, dtype=np.int32))
        results = engine.step([first, second], [chain(1, [2, 3]), chain(4, [5])], draws=ways)
        found = [result.drawn.tolist() for result in results]
    expected: list[list[int]] = []
    for way, length, rows in zip(ways, (4, 5), ([1, 2, 3], [4, 5]), strict=True):
        settings_ = SamplingSettings(do_sample=True, temperature=way.temperature, seed=way.seed)
        histories = [[*range(length), *rows[: row + 1]] for row in range(len(rows))]
        expected.append([sample_token(oracle.logits(each), settings_, way.identifier, len(each)) for each in histories])
    assert found == expected

"""The kernels of the loop on the device, in Triton's interpreter, against plain Python that does the same."""

import heapq
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from forerun.codegen.program import Source, State
from forerun.errors import InvalidOptionError
from forerun.execute.triton.loop import TritonLoop
from forerun.execute.triton.loop_calls import CHUNK, SUCCESSORS, Size, load_kernels, loop_source
from forerun.execute.triton.memory import InputLayout, new_state
from forerun.runtime.cache import CachedSequence
from forerun.runtime.device_loop import LARGEST, RANKS, Drafting
from forerun.runtime.drafters.token_recycling import SHARES, STILL_TRUE, TokenRecycling
from forerun.runtime.rows import tree_rows, tree_slots
from forerun.runtime.tree import Tree, check
from forerun.runtime.verify import verify

VOCABULARY, K, PATH, BLOCK, LENGTH = 13, 6, 12, 16, 4200
"""A small vocabulary, so that texts repeat themselves; more positions than two programs look up."""


STATES = {"one.keys": (2, 4), "one.values": (2, 3), "two.keys": (1, 5), "two.values": (1, 5)}


class Surroundings(SimpleNamespace):
    """What the loop needs from a launcher, with a step that is not run."""

    sources: Mapping[str, Source] = MappingProxyType({})

    def layout(self, rows: int, outputs: int) -> InputLayout:
        return InputLayout(rows, outputs, PATH, self.step.tables)

    def place(self, value: torch.Tensor) -> torch.Tensor:
        return value


def make_loop(drafting: Drafting, largest: int = 32) -> TritonLoop:
    device = torch.device("cpu")
    returned = (
        torch.zeros(0),
        torch.zeros((LARGEST, K), dtype=torch.int32),
        torch.zeros((LARGEST, K)),
    )
    step: Any = SimpleNamespace(
        states={name: State("position", each, (*each[:-1], BLOCK, each[-1]), "f32") for name, each in STATES.items()},
        block=BLOCK, sampled=None,
        tables=-(-LENGTH // BLOCK), max_path=PATH, returned=returned, vocabulary=VOCABULARY, candidates=K,
        max_length=LENGTH, max_rows=64, max_outputs=64,
    )  # fmt: skip
    launcher: Any = Surroundings(step=step, device=device, interpreted=True)
    state = new_state(step, 300, device)
    state.numbers.normal_(generator=torch.Generator().manual_seed(0))
    return TritonLoop(launcher, state, drafting, largest)


def some_text(random: np.random.Generator, count: int) -> list[int]:
    """Tokens with occasional repetitions."""
    text = random.integers(0, VOCABULARY, count).tolist()
    for _ in range(6):
        size = int(random.integers(2, 20))
        start, end = random.integers(0, count - size, 2).tolist()
        text[end : end + size] = text[start : start + size]
    size = int(random.integers(1, 14))
    start = int(random.integers(0, count - 2 * size))
    return [*text[:-size], *text[start : start + size]]


def begin(loop: TritonLoop, tokens: list[int], last: int, seed: int = 0) -> CachedSequence:
    blocks = np.random.default_rng(seed).permutation(280)[: -(-LENGTH // BLOCK)].astype(np.int32)
    sequence = CachedSequence(BLOCK, blocks, len(tokens) - 1)
    loop.begin(sequence, np.arange(280 * BLOCK, 280 * BLOCK + 64, dtype=np.int32), tokens, last)
    return sequence


def matches(tokens: list[int], places: int, longest: int = 12) -> list[tuple[int, int]]:
    """The (matched length, end) of each of the best earlier occurrences of the text's end."""
    found: list[tuple[int, int]] = []
    for end in range(len(tokens) - 1):
        length = 0
        while length < longest and length <= end and tokens[end - length] == tokens[-1 - length]:
            length += 1
        if length:
            found.append((length, end))
    return sorted(found, reverse=True)[:places]


@cache
def prior() -> np.ndarray:
    return Drafting().prior()


def expected_tree(loop: TritonLoop, tokens: list[int], drafting: Drafting, rows: int, deepest: int) -> dict[str, list]:
    """Best first with a heap: what may follow each row is found by reading the text and the table directly."""
    places = matches(tokens, drafting.places) if drafting.places else []
    known = loop.known
    successors, shares = known.successors.tolist(), known.shares.tolist()
    rates = (known.hits / known.trials).numpy()

    def follow(token: int, depth: int, reads: list[tuple[int, int]]) -> list[tuple[int, np.float32, int]]:
        if depth >= deepest:
            return []
        recycled = {}
        if depth < drafting.deepest:
            for successor, share in zip(successors[token], shares[token], strict=True):
                if successor >= 0:
                    recycled.setdefault(successor, share + 1)
        found: dict[int, int] = {}  # token -> its lookup's class
        for length, end in reads:
            if end + depth + 1 < len(tokens):
                rank = min(len(found), len(RANKS) - 1)
                found.setdefault(tokens[end + depth + 1], (min(length + depth, 12) - 1) * len(RANKS) + rank + 1)
        order = [*found, *(each for each in recycled if each not in found)]
        stages = len(STILL_TRUE)
        features = [
            (found.get(each, 0) * (len(SHARES) + 2) + recycled.get(each, 0)) * stages + min(depth, stages - 1)
            for each in order
        ]
        edges = [np.float32(rates[feature]) for feature in features]
        total = max(np.float32(sum(edges)), np.float32(1.0))
        return [(each, edge / total, feature) for each, edge, feature in zip(order, edges, features, strict=True)]

    tree: dict[str, list] = {"token": [tokens[-1]], "parent": [-1], "depth": [0], "feature": [0], "probability": [1.0]}
    reads = [places]
    heap: list[tuple[float, int, int]] = []
    children: list[list[tuple[int, np.float32, int]]] = []

    def expand(row: int) -> None:
        children.append(follow(tree["token"][row], tree["depth"][row], reads[row]))
        for number, (_, edge, _) in enumerate(children[row]):
            if edge > 0:
                heapq.heappush(heap, (-float(np.float32(tree["probability"][row]) * edge), row, number))

    expand(0)
    while heap and len(tree["token"]) < rows:
        likely, parent, number = heapq.heappop(heap)
        token, _, feature = children[parent][number]
        depth = tree["depth"][parent] + 1
        row = {"token": token, "parent": parent, "depth": depth, "feature": feature, "probability": -likely}
        for name, value in row.items():
            tree[name].append(value)
        reads.append(
            [each for each in reads[parent] if (tokens[each[1] + depth : each[1] + depth + 1] or [-1])[0] == token]
        )
        expand(len(tree["token"]) - 1)
    return tree


def propose(loop: TritonLoop, size: Size) -> tuple[Tree, np.ndarray]:
    """The tree that the kernels find, on poisoned memory, and each row's feature."""
    for name in ("tokens", "positions", "slots", "bases", "paths"):
        size.input(name)[: size.layout.rows].fill_(-7)
    for each in (loop.text.parents, loop.text.depths, loop.text.features):
        each.fill_(-7)
    loop.text.finds.fill_(-7)
    for call in loop.calls.before(size):
        loop.run(call)
    count = int(size.inputs[0])
    assert size.inputs[1] == count
    token, parent, depth, feature = (
        each[:count].numpy().copy()
        for each in (size.input("tokens"), loop.text.parents, loop.text.depths, loop.text.features)
    )
    return Tree(token, parent, depth, np.ones(count)), feature


@pytest.mark.parametrize(
    "drafting", [Drafting(), Drafting(places=0), Drafting(deepest=0), Drafting(places=3, deepest=2)]
)
@pytest.mark.parametrize(("count", "rows"), [(40, 16), (300, 32), (CHUNK + 1500, 7), (2, 4)])
def test_the_likeliest_tree(drafting: Drafting, count: int, rows: int) -> None:
    random = np.random.default_rng(count + rows + drafting.places)
    loop = make_loop(drafting)
    tokens = some_text(random, count) if count > 30 else random.integers(0, VOCABULARY, count).tolist()
    table = np.stack([random.permutation(VOCABULARY)[:SUCCESSORS] for _ in range(VOCABULARY)])
    table[random.random(table.shape) < 0.3] = -1
    loop.known.successors.copy_(torch.from_numpy(table.astype(np.int32)))
    loop.known.shares.copy_(torch.from_numpy(random.integers(0, len(SHARES) + 1, table.shape, dtype=np.int32)))
    loop.known.hits.copy_(torch.rand(loop.known.hits.shape, generator=torch.Generator().manual_seed(rows)) * 6)
    sequence = begin(loop, tokens, last=len(tokens) - 1 + 5 if rows == 32 else LENGTH - 1)
    size = loop.size(rows)
    tree, features = propose(loop, size)
    expected = expected_tree(loop, tokens, drafting, rows, 5 if rows == 32 else PATH)
    found = [tree.token.tolist(), tree.parent.tolist(), tree.depth.tolist(), features.tolist()]
    assert found == [expected[name] for name in ("token", "parent", "depth", "feature")]
    if count > 30:
        assert len(tree) > 1
    check(tree, VOCABULARY)
    # The step's inputs are those that the host would have built from the tree.
    slots, _ = tree_slots(sequence, tree, np.arange(280 * BLOCK, 280 * BLOCK + 64, dtype=np.int32))
    wanted = tree_rows(sequence, tree, slots)
    for name in ("tokens", "positions", "slots", "bases"):
        assert size.input(name)[: len(tree)].tolist() == getattr(wanted, name).tolist(), name
    paths = size.input("paths")[: size.layout.rows * PATH].reshape(size.layout.rows, PATH).numpy()
    for row, depth in enumerate(tree.depth.tolist()):
        assert paths[row, :depth].tolist() == wanted.paths[row, :depth].tolist()


def random_tree(random: np.random.Generator, rows: int, root: int) -> Tree:
    """Siblings hold different tokens."""
    token, parent, depth = [root], [-1], [0]
    taken: set[tuple[int, int]] = set()
    while len(token) < rows:
        above, what = int(random.integers(0, len(token))), int(random.integers(0, VOCABULARY))
        if depth[above] < PATH and (above, what) not in taken:
            taken.add((above, what))
            token.append(what)
            parent.append(above)
            depth.append(depth[above] + 1)
    columns = (np.array(each, np.int32) for each in (token, parent, depth))
    return Tree(*columns, np.ones(rows))


def place_tree(loop: TritonLoop, size: Size, tree: Tree, features: np.ndarray, sequence: CachedSequence) -> np.ndarray:
    """A tree as `propose` would have left it; returns the slots of its rows."""
    count = len(tree)
    slots, _ = tree_slots(sequence, tree, np.arange(280 * BLOCK, 280 * BLOCK + 64, dtype=np.int32))
    size.inputs[:2] = count
    for name, value in (("tokens", tree.token), ("slots", slots)):
        size.input(name)[:count].copy_(torch.from_numpy(value))
    text = loop.text
    for place, value in ((text.parents, tree.parent), (text.depths, tree.depth), (text.features, features)):
        place.fill_(-7)
        place[:count].copy_(torch.from_numpy(value))
    return slots


@pytest.mark.parametrize("seed", range(6))
def test_the_drawn_path_is_committed(seed: int) -> None:
    random = np.random.default_rng(seed)
    loop, rows = make_loop(Drafting()), int(random.integers(1, 33))
    tokens = some_text(random, 50)
    sequence = begin(loop, tokens, LENGTH - 1, seed)
    tree, size = random_tree(random, rows, tokens[-1]), loop.size(32)
    features = random.integers(0, 50, rows, dtype=np.int32)
    slots = place_tree(loop, size, tree, features, sequence)
    drawn = random.integers(0, VOCABULARY, rows)
    for row in range(1, rows):  # half of the rows choose a child, if they have one
        if random.random() < 0.5:
            drawn[tree.parent[row]] = tree.token[row]
    verdict = verify(tree, lambda row: int(drawn[row]))
    ids, logits = loop.launcher.step.returned[1:]
    candidates = np.stack([random.permutation(VOCABULARY)[:K] for _ in range(rows)]).astype(np.int32)
    candidates[:, 0] = drawn
    scores = -np.sort(-random.normal(0, 2, (rows, K)).astype(np.float32), axis=1)
    ids.fill_(-7)[:rows].copy_(torch.from_numpy(candidates))
    logits.fill_(float("nan"))[:rows].copy_(torch.from_numpy(scores))
    before, known = loop.state.numbers.clone(), loop.known
    hits, trials = known.hits.clone(), known.trials.clone()
    for call in loop.calls.after(size):
        loop.run(call)

    accepted, evaluated, *rest = loop.text.report[0].tolist()
    assert (accepted, evaluated) == (len(verdict.path), rows)
    assert rest[:accepted] == verdict.path
    assert rest[LARGEST : LARGEST + accepted] == verdict.tokens
    assert loop.text.state.tolist() == [len(tokens) - 1 + accepted, LENGTH - 1, 1]
    assert loop.text.tokens[: len(tokens) + accepted].tolist() == [*tokens, *verdict.tokens]

    # The keys and values of the path are at home; all others are where they were.
    places = loop.state.places
    first, block, lane = (each.numpy() for each in (places.first, places.block, places.lane))
    expected = before.numpy().copy()
    for depth, row in enumerate(verdict.path):
        home = int(sequence.home(np.array([sequence.length + depth]))[0])
        source, target = (first + slot // BLOCK * block + slot % BLOCK * lane for slot in (int(slots[row]), home))
        expected[target] = before.numpy()[source]
    assert np.array_equal(loop.state.numbers.numpy(), expected)

    # Estimates: each child of the path's rows was tried; those on the path were right.
    for row in range(1, rows):
        if int(tree.parent[row]) in verdict.path:
            trials[features[row]] += 1
            hits[features[row]] += row in verdict.path
    assert torch.equal(known.trials, trials)
    assert torch.equal(known.hits, hits)

    # Successors are as token recycling keeps them on the host: a token's last row decides, or its row on the path.
    host = TokenRecycling(VOCABULARY, SUCCESSORS)
    host._record(tree.token, candidates, scores)
    host._record(tree.token[verdict.path], candidates[verdict.path], scores[verdict.path])
    assert np.array_equal(known.successors.numpy(), host.successors)
    assert np.array_equal(known.shares.numpy()[host.successors >= 0], host.share[host.successors >= 0])


def test_behind_the_last_position_nothing_happens() -> None:
    loop = make_loop(Drafting())
    tokens = [3, 4, 3, 4, 3]
    begin(loop, tokens, last=3)
    size = loop.size(8)
    assert len(propose(loop, size)[0]) == 0
    before = loop.state.numbers.clone()
    loop.text.path.fill_(0)
    for call in loop.calls.after(size):
        loop.run(call)
    assert loop.text.state.tolist() == [4, 3, 1]
    assert loop.text.report[0, 0] == 0
    assert torch.equal(loop.state.numbers, before)


def test_a_round_has_rows_that_a_step_has() -> None:
    for rows in (0, 65):
        with pytest.raises(InvalidOptionError, match="1 to 64 rows"):
            make_loop(Drafting(), rows)


def test_bad_sizes_places_and_files_are_named() -> None:
    loop = make_loop(Drafting(), 8)
    for rows in (0, 9):
        with pytest.raises(InvalidOptionError, match="1 to 8 rows"):
            loop.size(rows)
    for places, deepest in ((25, 1), (-1, 1), (1, -3)):
        with pytest.raises(InvalidOptionError, match="0 to 24 places"):
            Drafting(places, deepest)
    mine = {"loop": replace(loop_source(), text="def propose(): ...\n")}
    with pytest.raises(InvalidOptionError, match=r"loop\.py has no look_up, verify"):
        load_kernels(True, mine)


def test_evidence_fades_between_texts() -> None:
    loop = make_loop(Drafting())
    loop.known.trials.fill_(4001.0)
    loop.known.hits.fill_(1000.0)
    loop.known.trials[3] = 10.0
    begin(loop, [1, 2], 10)
    assert loop.known.trials[3] == 10
    assert loop.known.hits[3] == 1000
    assert loop.known.trials[4] == 2000.5
    assert loop.known.hits[4] == 500


def test_the_kernels_can_be_replaced() -> None:
    mine = replace(loop_source(), text=loop_source().text + "MINE = True\n")
    assert load_kernels(True, {"loop": mine}).MINE
    assert not hasattr(load_kernels(True, {}), "MINE")

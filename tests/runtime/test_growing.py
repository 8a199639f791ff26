"""Growing trees with a draft: what is worth a launch, where drafting stops, how estimates learn."""

import numpy as np
import pytest

from forerun.errors import InvalidOptionError
from forerun.runtime.balance import Balance
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Budget
from forerun.runtime.drafters.growing import Grower, Launches, LikeliestAbove, MarginAbove, Shape
from forerun.runtime.drafters.launch_cost import LaunchCost

COST = CostModel((1, 8), (1.0, 1.0))  # one second per step, whatever its rows
FREE = Launches(lambda depth: 0.0)


class Clock:
    """A clock that advances by what launches take."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Draft:
    """Proposes token + 1 first, with fixed logits."""

    def __init__(self, logits=(8.0, 0.0, -1.0), clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.logits = np.array(logits, np.float32)
        self.clock, self.seconds = clock, seconds
        self.levels: list[list[int]] = []

    def __call__(self, builder, rows):
        self.levels.append(list(rows))
        if self.clock:
            self.clock.now += self.seconds
        token = np.array([builder.tokens[row] for row in rows], np.int32)
        candidates = token[:, None] + np.arange(1, len(self.logits) + 1, dtype=np.int32)
        return candidates, np.tile(self.logits, (len(rows), 1))


def grower(shape=Shape(), cost=COST, **more) -> Grower:  # noqa: B008
    more = {"clock": Clock(), "balance": Balance(share=0.0)} | more
    return Grower(shape, LaunchCost(cost), cost.seconds(1), **more)


def grow(own: Grower, root, budget, launches, evaluate):
    """Grows a tree whose levels `evaluate` evaluates."""
    growing = own.growing(root, budget, launches)
    try:
        level = next(growing)
        while True:
            level = growing.send(evaluate(*level))
    except StopIteration as end:
        return end.value


def test_without_a_price_a_tree_has_its_full_shape() -> None:
    draft = Draft()
    grown = grow(grower(Shape(deepest=4, beam=2, children=3)), 5, Budget(64, 10), FREE, draft)
    assert [len(level) for level in draft.levels] == [1, 2, 2, 2]
    assert grown.tree.height == 4
    assert len(grown.tree) == 1 + 3 * (1 + 2 + 2 + 2)
    assert grown.evaluated == sorted(row for level in draft.levels for row in level)
    for level in draft.levels[1:]:  # the likeliest of each level
        depth = grown.tree.depth[level[0]]
        others = np.setdiff1d(np.flatnonzero(grown.tree.depth == depth), level)
        assert grown.tree.probability[level].min() >= grown.tree.probability[others].max()


def test_the_budgets_depth_is_kept() -> None:
    assert grow(grower(), 5, Budget(64, 2), FREE, Draft()).tree.height == 2
    assert len(grow(grower(), 5, Budget(64, 0), FREE, Draft()).tree) == 1


def test_siblings_share_one_token() -> None:
    tree = grow(grower(), 5, Budget(64, 3), FREE, Draft((1.0, 1.0, 1.0))).tree
    for row in range(len(tree)):
        children = tree.children(row)
        assert sum(tree.edge_probability[child] for child in children) <= 1 + 1e-9


def test_a_draft_dearer_than_what_it_brings_is_not_taken() -> None:
    for share, drafted in ((0.3, True), (0.9, False)):
        draft = Draft()
        grow(grower(), 5, Budget(64, 6, price=1.0), Launches(lambda depth, share=share: share), draft)
        assert bool(draft.levels) == drafted


def test_a_launch_is_judged_by_what_such_launches_brought() -> None:
    """A draft that is never right is soon left alone; one that is always right is drafted with ever deeper."""
    for right in (False, True):
        clock = Clock()
        own = grower(Shape(deepest=6, beam=1, children=1), clock=clock)
        launches = Launches(lambda depth: 0.5)
        for _ in range(60):
            draft = Draft((8.0,), clock, 0.5)
            grown = grow(own, 5, Budget(64, 6, price=1.0), launches, draft)
            own.observe(grown.proposed, [6, 7, 8, 9, 10, 11, 12] if right else [99], 7 if right else 1)
        assert len(draft.levels) == (6 if right else 0)


def test_trials_lose_no_more_than_their_share() -> None:
    """A draft of half a step that is never right is tried in one iteration of fifty, at a share of one in a hundred."""
    clock = Clock()
    own = grower(Shape(deepest=1, beam=1, children=1), clock=clock, balance=Balance(share=0.01))
    launches, drafts = Launches(lambda depth: 0.5), 0
    for _ in range(1000):  # one second each, without the draft
        draft = Draft((8.0,), clock, 0.5)
        grown = grow(own, 5, Budget(64, 6, price=1.0), launches, draft)
        clock.now += 1.0
        own.observe(grown.proposed, [99], 1)
        drafts += len(draft.levels)
    assert 18 <= drafts <= 40


def test_a_draft_that_has_become_good_is_soon_used_again() -> None:
    clock = Clock()
    own = grower(Shape(deepest=3, beam=1, children=1), clock=clock, balance=Balance())
    launches = Launches(lambda depth: 0.3)
    drafted: list[bool] = []
    for iteration in range(600):
        draft = Draft((8.0,), clock, 0.3)
        grown = grow(own, 5, Budget(64, 6, price=1.0), launches, draft)
        clock.now += 1.0
        right = len(grown.tree) if iteration >= 300 else 1
        own.observe(grown.proposed, [6, 7, 8, 9][:right] if iteration >= 300 else [99], right)
        drafted.append(bool(draft.levels))
    assert sum(drafted[32:300]) <= 12
    assert sum(drafted[400:464]) >= 63  # one without, for comparison


@pytest.mark.parametrize(
    ("brought", "drafted"),
    [
        ([0.5] * 4, False),  # less than the 0.7 that bringing the child to the entry costs
        ([0.95] * 4, True),  # 0.25 are left of it, and the head of the root's launch is 0.2
        ([0.85] * 4, False),
        ([0.0, 0.0, 0.0, 1.0], False),  # 0.3 in one case of four
        ([0.0, 1.0, 1.0, 1.0], True),  # 0.225: nothing is lost where the child turns out to be unlikely
    ],
)
def test_a_child_that_has_to_be_brought_to_the_entry_costs_that(brought: list[float], drafted: bool) -> None:
    """Verification is entered after 0.7 of a step; a launch, with the head, is 0.9 of one."""
    own = grower(Shape(deepest=1, beam=1, children=1))
    own.brought[0].clear()
    own.brought[0].extend(brought)
    draft = Draft()
    grow(own, 5, Budget(64, 6, price=1.0), Launches(lambda depth: 0.9, catch_up=0.7), draft)
    assert bool(draft.levels) == drafted


@pytest.mark.parametrize(
    ("confidence", "logits", "levels"),
    [
        (LikeliestAbove(0.6), (8.0, 0.0, 0.0), 3),
        (LikeliestAbove(0.6), (0.5, 0.0, 0.0), 1),
        (MarginAbove(0.3), (8.0, 7.9, 0.0), 1),
        (MarginAbove(0.3), (8.0, 2.0, 0.0), 3),
        (MarginAbove(0.3), (8.0,), 3),
    ],
)
def test_an_uncertain_row_is_not_gone_on_from(confidence, logits, levels) -> None:
    draft = Draft(logits)
    tree = grow(grower(Shape(deepest=3, beam=1), confidence=confidence), 5, Budget(64, 6), FREE, draft).tree
    assert len(draft.levels) == levels
    assert tree.height == levels  # the uncertain row's own proposals are kept


def test_candidates_that_cannot_be_offered_are_left_out() -> None:
    def evaluate(builder, rows):
        return np.array([[7, -1, 9]] * len(rows), np.int32), np.zeros((len(rows), 3), np.float32)

    tree = grow(grower(Shape(deepest=1)), 5, Budget(64, 6), FREE, evaluate).tree
    assert tree.token.tolist() == [5, 7, 9]


def test_launches_cost_what_they_took() -> None:
    cost = LaunchCost(COST)
    assert cost.seconds(1, 0.25) == 0.25
    for _ in range(200):
        cost.observe(1, 0.25, 0.45)
    assert cost.seconds(1, 0.25) == pytest.approx(0.45, rel=0.01)
    cost.observe(1, 0.25, 100.0)  # a neighbour woke up
    assert cost.seconds(1, 0.25) == pytest.approx(0.45, rel=0.01)
    assert LaunchCost(None).seconds(8, 1.0) == 0.0


@pytest.mark.parametrize("field", ["deepest", "beam", "children"])
def test_shapes_are_checked(field: str) -> None:
    with pytest.raises(InvalidOptionError, match=field):
        Shape(**{field: 0})


def test_a_use_that_loses_rests_after_a_few() -> None:
    balance = Balance(share=0.0)
    for _ in range(11):
        balance.observe(-0.2, trial=False)
    assert balance.pays  # too few to tell
    balance.observe(-0.2, trial=False)
    assert not balance.pays
    assert not balance.allows


def test_a_pause_does_not_decide() -> None:
    balance = Balance()
    for _ in range(20):
        balance.observe(0.4, trial=False)
    balance.observe(-1e6, trial=False)
    assert balance.pays


@pytest.mark.parametrize(("plain", "pays"), [(1, True), (3, False)])
def test_a_draft_pays_by_what_it_adds_to_an_iteration(plain: int, pays: bool) -> None:
    """Other drafters' tokens come without the draft too."""
    clock = Clock()
    own = grower(Shape(deepest=2, beam=1, children=1), clock=clock)
    for iteration in range(60):
        drafts = iteration % 2 == 1
        grown = grow(own, 5, Budget(64, 2 if drafts else 0, price=1.0), FREE, Draft((8.0,)))
        clock.now += 1.6 if grown.evaluated else 1.1
        own.observe(grown.proposed, [6, 7, 8], 3 if grown.evaluated else plain)
    assert own.balance.pays == pays

"""Values that make no sense are refused when a strategy is built: every field of every public dataclass is checked."""

import dataclasses
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import forerun
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.compile_options import resolve_target, targets
from forerun.errors import ForerunError, InvalidOptionError
from forerun.runtime import policy
from forerun.runtime.calibration import CostModel
from forerun.runtime.current_cost import CurrentCost
from forerun.runtime.drafters.parts.early_exit import ExitAt
from forerun.runtime.fields import CHECK, DTYPES, Checked
from forerun.runtime.options import dtype_name

RESULTS = {"Generation", "Piece", "Stats"}
"""Dataclasses that forerun makes, and no caller."""
PUBLIC = [
    each
    for name in forerun.__all__
    if name not in RESULTS and dataclasses.is_dataclass(each := getattr(forerun, name)) and isinstance(each, type)
]
INTERNAL = [ExitAt, policy.Fixed, policy.CostAware]
NAN, INF = float("nan"), float("inf")
OF_NO_KIND = [None, "", "3", b"3", [], {}, object(), NAN, 1j, int]
BY_TYPE: dict[Any, list[Any]] = {
    int: [*OF_NO_KIND, True, -1, 1.0, 2.5, INF, np.float32(1), np.array([1, 2]), torch.tensor(1.0)],
    int | None: ["", "3", [], object(), True, 0, -1, 1.5, NAN, int],
    float: [*OF_NO_KIND, True, -1, -0.5, -INF, np.nan, torch.tensor(NAN), np.array([0.5])],
    bool: [*OF_NO_KIND, 0, 1, "yes", np.array([True])],
    str: [*OF_NO_KIND, 5, True, "no such name"],
}
WRONG_VALUES: dict[str, list[Any]] = {
    "shape": [*OF_NO_KIND, 5, forerun.Shape, (6, 3, 3), forerun.Fixed(3)],
    "confidence": [*OF_NO_KIND, 0.5, forerun.MarginAbove, forerun.Shape(), lambda: True],
    "method": [*OF_NO_KIND, 3, "swift", forerun.Swift, (1, 2), {1: 2}, forerun.EarlyExit(), forerun.Fixed(3)],
    "drafter": ["prompt_lookup", 3, forerun.PromptLookup, forerun.Fixed(3), (forerun.PromptLookup(),)],
    "drafters": [
        None, "", "prompt_lookup", 3, forerun.PromptLookup(), forerun.PromptLookup, {forerun.PromptLookup()},
        (forerun.PromptLookup,), ("prompt_lookup",), (None,), [forerun.Fixed(3)], (forerun.Swift(),),
        (forerun.TreeSpec(),), (forerun.PromptLookup(), 3), (x for x in ()),
    ],
    "policy": [*OF_NO_KIND, 3, forerun.Fixed, forerun.PromptLookup(), (forerun.Fixed(1),), policy.Fixed(3)],
    "source": [None, "", b"", 3, True, 1.5, [], (), {}, set(), forerun.CompiledModel],
}  # fmt: skip


def fields_of(kind: type) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(kind) if field.init]


def made(kind: type, **values: Any) -> Any:
    needed = {"source": "a/path", "layer": 1, "rows": 4, "calibrated": CostModel((1, 8), (1.0, 2.0))}
    names = {
        each.name for each in dataclasses.fields(kind) if each.init and each.default is dataclasses.MISSING
    } & needed.keys()
    return kind(**({name: needed[name] for name in names} | values))


CASES = [(kind, name) for kind in [*PUBLIC, *INTERNAL] for name, _ in fields_of(kind)]
NOT_OF_A_CALLER = {"calibrated", "clock"}


@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind.__name__}.{name}" for kind, name in CASES])
def test_wrong_values_are_refused_naming_class_and_field(kind: type, name: str) -> None:
    if name in NOT_OF_A_CALLER:
        return
    hint = dict(fields_of(kind))[name]
    wrong = WRONG_VALUES.get(name) or BY_TYPE[hint]
    for value in wrong:
        with pytest.raises(InvalidOptionError) as caught:
            made(kind, **{name: value})
        first, *more = str(caught.value).splitlines()
        assert isinstance(caught.value, ForerunError)
        assert not more
        assert name in first
        assert kind.__name__ in first
        assert len(first) < 300


def test_every_public_field_has_a_check() -> None:
    assert len(PUBLIC) > 15
    for kind in PUBLIC:
        assert issubclass(kind, Checked), kind
        for field in dataclasses.fields(kind):
            assert CHECK in field.metadata, (kind, field.name)
        assert made(kind) == made(kind), "defaults are right"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: forerun.Clasp(skipped=1.5),
        lambda: forerun.Clasp(skipped=0),
        lambda: forerun.Swift(good_enough=1.1),
        lambda: forerun.Uniform(INF),
        lambda: forerun.Uniform(0.99),
        lambda: forerun.DecayedDepth(alpha=1.01),
        lambda: forerun.SkipDecode(least=0.8),
        lambda: forerun.LikeliestAbove(1.5),
        lambda: forerun.FeedForwardOnly(skipped=1.1),
        lambda: forerun.Fixed(0),
        lambda: forerun.CostAware(0),
        lambda: forerun.EarlyExit(0),
        lambda: policy.CostAware(CostModel((1, 8), (1.0, 2.0)), memory=1.0),
        lambda: CurrentCost(CostModel((1, 8), (1.0, 2.0)), memory=NAN),
    ],
)
def test_ends_of_ranges(wrong: Any) -> None:
    with pytest.raises(InvalidOptionError):
        wrong()


def test_what_is_taken_is_kept_in_one_form() -> None:
    listed = forerun.TreeSpec(drafters=[forerun.PromptLookup()])
    assert listed == forerun.TreeSpec(drafters=(forerun.PromptLookup(),))
    assert hash(listed) == hash(forerun.TreeSpec(drafters=(forerun.PromptLookup(),)))
    rows = forerun.Fixed(np.int64(4)).rows, forerun.Fixed(torch.tensor(4)).rows
    assert rows == (4, 4)
    assert {type(each) for each in rows} == {int}
    assert type(forerun.Clasp(np.float32(0.5)).skipped) is float
    assert forerun.DraftModel("x", dtype=torch.bfloat16).dtype == "bfloat16"
    assert forerun.EarlyExit(None).layer is None
    assert forerun.SkipLayers(confidence=lambda shares: True).confidence(np.ones(1))

    @dataclasses.dataclass(frozen=True)
    class Own(forerun.PromptLookup):
        longest: int = 7

    assert forerun.TreeSpec(drafters=(Own(),)).drafters[0].longest == 7


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (torch.float32, "float32"),
        (torch.bfloat16, "bfloat16"),
        (torch.half, "float16"),
        (np.float32, "float32"),
        (np.dtype("float16"), "float16"),
        ("native", "native"),
        (torch.float64, "float64"),
        (None, None),
        (3, 3),
    ],
)
def test_dtypes_have_names(given: Any, name: Any) -> None:
    assert dtype_name(given) == name


def test_dtypes_of_a_draft_are_those_of_the_compiler() -> None:
    assert set(DTYPES) == set(WEIGHT_DTYPES) == {each for own in targets().values() for each in own}
    assert resolve_target("cpu", dtype_name(torch.float32)) == "cpu"
    with pytest.raises(InvalidOptionError, match="no kernels for dtype 'float64'"):
        forerun.compile(torch.nn.Embedding(4, 4), dtype=torch.float64, target="cpu")

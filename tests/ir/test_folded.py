"""Layers that are alike are written once, and nothing else is left out."""

from hypothesis import given
from hypothesis import strategies as st

from forerun.ir.folded import folded

HEAD = "spec.func @step(%x: !spec.tensor<[N, 4], f32>) {\n"


def layer(number: int, width: int = 4) -> str:
    weight = f"@model.layers.{number}.up"
    return (
        f'  %{number * 2} = spec.parameter {weight}() {{shape = [{width}, 4]}} loc("m.py":{number}:1)\n'
        f"  %{number * 2 + 1} = spec.linear(%x, %{number * 2}) {{branch = {number}}}\n"
        f'  spec.send(%{number * 2 + 1}) {{payload = "layers.{number}.x", branch = {number}}}\n'
    )


def test_layers_after_the_first_are_a_comment() -> None:
    text = HEAD + "".join(map(layer, range(30))) + "  spec.return()\n}\n"
    assert folded(text) == HEAD + layer(0) + "  // layers 1..29 as layer 0: 3 lines each\n  spec.return()\n}\n"


def test_a_layer_that_is_another_one_stays() -> None:
    text = "".join([*map(layer, range(5)), layer(5, width=8), *map(layer, range(6, 12))])
    found = folded(text)
    assert layer(5, width=8) in found
    assert "layers 1..4 as layer 0" in found
    assert "layers 6..10 as layer 5" in found  # a period may begin within a layer


def test_two_layers_are_not_folded() -> None:
    text = HEAD + layer(0) + layer(1) + "}\n"
    assert folded(text) == text


@given(st.lists(st.sampled_from(["a", "b", "c", "  d"]), max_size=24))
def test_what_is_left_out_can_be_put_back(words: list[str]) -> None:
    """Lines without numbers are the same in all layers, so the comments say all that was left out."""
    text = "".join(f"{each}\n" for each in words)
    lines: list[str] = []
    for line in folded(text).splitlines(keepends=True):
        if not line.strip().startswith("//"):
            lines.append(line)
            continue
        words_of = line.split()
        count, period = int(words_of[1]), int(words_of[-3])
        lines += lines[-period:] * count
    assert "".join(lines) == text

"""Tool calls in texts: however a text is divided into pieces, the same calls and contents are found."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.server.tool_calls import ToolCall, ToolCallParser

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
CASES = [
    ("", [], []),
    ("plain text  ", ["plain text  "], []),
    (CALL, [], ["f"]),
    (f" \n{CALL}\n\n{CALL}\n", [], ["f", "f"]),
    (f"Look: \n{CALL} done", ["Look:", "done"], ["f"]),
    ("a <tool_call>{broken</tool_call> b", ["a <tool_call>{broken</tool_call> b"], []),
    ("a <tool_call>{", ["a <tool_call>{"], []),
    ("a <tool", ["a <tool"], []),
    ("<tool_call>[1]</tool_call>", ["<tool_call>[1]</tool_call>"], []),
    ('<tool_call>{"name": 1}</tool_call>', ['<tool_call>{"name": 1}</tool_call>'], []),
    ("x < y <tool_called> z", ["x < y <tool_called> z"], []),
    ("  ", ["  "], []),
]


def read(parts: list[str]) -> tuple[list[str], list[ToolCall]]:
    """Texts between calls are joined."""
    parser, found = ToolCallParser(), []
    for part in parts:
        found += parser.add(part)
    found += parser.end()
    texts, calls, fresh = [], [], True
    for each in found:
        if isinstance(each, ToolCall):
            calls.append(each)
            fresh = True
        else:
            assert each
            texts = [*texts, each] if fresh else [*texts[:-1], texts[-1] + each]
            fresh = False
    return texts, calls


@pytest.mark.parametrize(("text", "texts", "names"), CASES)
def test_cases(text: str, texts: list[str], names: list[str]):
    found = read([text])
    assert (found[0], [call.name for call in found[1]]) == (texts, names)


@given(
    parts=st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "<tool", "_call>", "<", '{"name": "g"}', " ", "\n", "x"])
    ),
    data=st.data(),
)
def test_division_changes_nothing(parts: list[str], data: st.DataObject):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    divided = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(divided) == read([text]) == read(list(text))


@pytest.mark.parametrize("name", ["arguments", "parameters"])
def test_arguments(name: str):
    for given_, expected in (({"a": "é"}, {"a": "é"}), ('{"b": 2}', {"b": 2})):
        inside = json.dumps({"name": "f", name: given_})
        [call] = read([f"<tool_call>\n{inside}\n</tool_call>"])[1]
        assert json.loads(call.arguments) == expected


def test_nothing_is_held_back_without_need():
    parser = ToolCallParser()
    assert list(parser.add("a < b")) == ["a < b"]
    assert list(parser.add(" <to")) == []
    assert list(parser.add("p")) == [" <top"]

"""How converters laid out the tensors of each architecture: what became of transformers' rows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.intp]
"""For each row of a tensor of the model, the number of the file's row."""
Rows = Callable[[Order, Mapping[str, Any]], Order]
"""(the file's rows, the configuration's parameters) -> the same rows in the model's order, in any shape."""


@dataclass(frozen=True)
class Layout:
    """What turns a tensor of a file into one of the model."""

    rows: Rows | None = None
    transposed: bool = False
    added: float = 0.0  # to every number
    is_row: bool = False  # a vector of the file is a matrix of one row

    def order(self, count: int, parameters: Mapping[str, Any]) -> Order | None:
        """The order of that many rows, or None if it is the file's. Raises ValueError if they do not fit."""
        return None if self.rows is None else self.rows(np.arange(count), parameters).reshape(-1)


def _paired(heads: str) -> Rows:
    """The two halves of a head lie side by side, feature by feature."""
    return lambda rows, parameters: rows.reshape(parameters[heads], -1, 2).swapaxes(1, 2)


def _joined(rows: Order, parameters: Mapping[str, Any]) -> Order:
    """All queries, then all keys, then all values; in the model, a head's are together."""
    return rows.reshape(3, parameters["n_head"], -1).swapaxes(0, 1)


def _grouped(rows: Order, parameters: Mapping[str, Any]) -> Order:
    """All queries, then all keys, then all values; in the model, queries are together with their key and value.

    The layout `jploski` of the GGUF specification.
    """
    heads, groups = parameters["num_attention_heads"], parameters["num_kv_heads"]
    parts = rows.reshape(heads + 2 * groups, -1)
    queries = parts[:heads].reshape(groups, heads // groups, -1)
    keys, values = parts[heads : heads + groups, None], parts[heads + groups :, None]
    return np.concatenate([queries, keys, values], axis=1)


PLAIN = Layout()
SHIFTED = {r"norm\.weight": Layout(added=-1.0)}
LAYOUTS: Mapping[str, Mapping[str, Layout]] = {
    "llama": {
        r"\.attn_q\.": Layout(_paired("num_attention_heads")),
        r"\.attn_k\.": Layout(_paired("num_key_value_heads")),
    },
    "bloom": {r"\.attn_qkv\.": Layout(_joined)},
    "falcon": {r"\.attn_qkv\.": Layout(_grouped)},
    "gpt2": {r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight": Layout(transposed=True)},
    "gemma2": SHIFTED,
    "gemma3": SHIFTED,
    "nemotron": SHIFTED,
    "qwen2moe": {r"\.ffn_gate_inp_shexp\.": Layout(is_row=True)},  # older files have a vector, newer ones the matrix
}
"""The layouts by architecture, and by a pattern of the tensor's name; all other tensors are as in the model."""


def layout_of(architecture: str, name: str) -> Layout:
    """The layout of a tensor of the file."""
    return next((each for pattern, each in LAYOUTS.get(architecture, {}).items() if re.search(pattern, name)), PLAIN)

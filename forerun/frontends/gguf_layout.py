"""Undoes converters' reordering of a tensor's rows: transformers' processors, and those that it lacks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    GGUFTensor,
    Qwen2MoeTensorProcessor,
    TensorProcessor,
)


class GroupedRows(TensorProcessor):
    """All queries, then all keys, then all values: put back into groups of queries with their key and value.

    The layout `jploski` of the GGUF specification.
    """

    def process(self, weights: NDArray[np.float32], name: str, **kwargs: Any) -> GGUFTensor:
        """`[(heads + 2 groups) * head size, ...]` in either order."""
        if ".attn_qkv." not in name:
            return GGUFTensor(weights, name, {})
        heads, groups = self.config["num_attention_heads"], self.config["num_kv_heads"]
        rows = weights.reshape(heads + 2 * groups, -1, *weights.shape[1:])
        queries = rows[:heads].reshape(groups, heads // groups, *rows.shape[1:])
        keys, values = rows[heads : heads + groups, None], rows[heads + groups :, None]
        grouped = np.concatenate([queries, keys, values], axis=1)
        return GGUFTensor(grouped.reshape(weights.shape), name, {})


class SharedExpertGate(Qwen2MoeTensorProcessor):
    """The gate of the shared expert is `[hidden]` in older files and `[1, hidden]` in newer ones."""

    def process(self, weights: NDArray[np.float32], name: str, **kwargs: Any) -> GGUFTensor:
        """As in transformers, which supports the older files."""
        return super().process(weights.reshape(-1) if ".ffn_gate_inp_shexp." in name else weights, name, **kwargs)


PROCESSORS: Mapping[str, type[TensorProcessor]] = {
    **TENSOR_PROCESSORS,
    "falcon": GroupedRows,
    "qwen2moe": SharedExpertGate,
}


def tensor_processor(architecture: str, parameters: Mapping[str, Any]) -> TensorProcessor:
    """The processor of an architecture's tensors, which reads sizes from the configuration's parameters."""
    return PROCESSORS.get(architecture, TensorProcessor)(config=dict(parameters))

"""The rotary embedding that a GGUF file's metadata describes, in transformers' parameters.

llama.cpp turns a position p by p * base^(-2i/d), in a different way for each scaling type (`rope_yarn` in ggml, and
`llama-context.cpp` for the factor on the rotated values):

- linear: positions p / factor;
- yarn: a blend of p and p / factor by frequency, and queries and keys times (1 + 0.1 ln factor) attn_factor;
- longrope: each frequency divided by a factor of `rope_factors_short`, or of `rope_factors_long` beyond the original
  context, and queries and keys times attn_factor;
- `rope_freqs`, whatever the type: each frequency divided by its factor (Llama 3).
"""

import math
from typing import Any

from gguf.quants import dequantize

from forerun.errors import CorruptFileError, UnsupportedOperationError
from forerun.frontends.gguf_keys import Rotary
from forerun.frontends.gguf_metadata import Keys

DEFAULT_BASE = 10000.0
FREQUENCY_FACTORS = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
TABLES = frozenset({FREQUENCY_FACTORS, LONG, SHORT})
"""Tensors that describe the rotary embedding, and are no weights of the model."""


def rotary_parameters(keys: Keys, head_size: int) -> dict[str, Any]:
    """`rope_parameters` for heads of `head_size` features, if the architecture rotates them."""
    rotary = keys.architecture.rotary
    if rotary is Rotary.NONE:
        return {}
    turned = keys.get("rope.dimension_count", head_size)
    if turned % 2 or turned > head_size:
        raise keys.damaged("rope.dimension_count", f"is {turned}, which does not fit heads of {head_size} features")
    if rotary is not Rotary.PARTIAL and turned != head_size:
        raise keys.unsupported("rope.dimension_count")
    base = keys.get("rope.freq_base", DEFAULT_BASE)
    parameters = {"rope_theta": base, **_scaling(keys, turned // 2)}
    if rotary is Rotary.PARTIAL:
        parameters["partial_rotary_factor"] = _share(turned, head_size)
    if rotary is not Rotary.BY_LAYER_TYPE:
        return _with_original_length({"rope_parameters": parameters})
    if not keys.get("attention.sliding_window", 0):
        return {"rope_parameters": {"full_attention": parameters}}
    sliding = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base_swa", DEFAULT_BASE)}
    return {"rope_parameters": {"full_attention": parameters, "sliding_attention": sliding}}


def _with_original_length(found: dict[str, Any]) -> dict[str, Any]:
    """Configurations such as Phi-3's hold the original length outside the rotary parameters, with priority."""
    original = found["rope_parameters"].get("original_max_position_embeddings")
    return found if original is None else {**found, "original_max_position_embeddings": original}


def _share(turned: int, head_size: int) -> float:
    """A share whose product with the head's size, cut to an integer, is `turned`."""
    share = turned / head_size
    return share if int(head_size * share) == turned else math.nextafter(share, 2)


def _scaling(keys: Keys, frequencies: int) -> dict[str, Any]:
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0)) or 1.0
    name = "rope.scaling.factor" if "rope.scaling.factor" in keys.values else "rope.scale_linear"
    if factor <= 0:
        raise keys.damaged(name, f"is {factor}, but must be a positive number")
    tables = {LONG, SHORT} & set(keys.tensors)
    kind = keys.get("rope.scaling.type", "longrope" if tables else "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.unsupported("rope.scaling.type", "which is not a scaling of the format")
    if (kind == "longrope") != bool(tables):
        raise UnsupportedOperationError(
            f"{keys.header.path} has {'' if tables else 'no '}longrope factors ({LONG}, {SHORT}), but scales its "
            f"rotary embedding by {kind!r}: convert the model again."
        )
    attention = keys.get("rope.scaling.attn_factor", 1.0)
    scaled = kind == "longrope" or (kind != "none" and factor != 1)
    if scaled and kind not in keys.architecture.scalings:
        raise keys.unsupported("rope.scaling.type" if "rope.scaling.type" in keys.values else name)
    original = keys.get("rope.scaling.original_context_length", keys.get("context_length"))
    if kind == "longrope":
        if factor != 1:
            raise keys.unsupported(name, "but longrope has a factor for each frequency")
        return {
            "rope_type": "longrope",
            "long_factor": _table(keys, LONG, frequencies),
            "short_factor": _table(keys, SHORT, frequencies),
            "attention_factor": attention,
            "original_max_position_embeddings": original,
        }
    if not scaled or kind == "linear":
        if attention != 1:
            raise keys.unsupported("rope.scaling.attn_factor")
        return {"rope_type": "linear", "factor": factor} if scaled else {"rope_type": "default"}
    if factor < 1:
        raise keys.unsupported(name, "but yarn only extends a context")
    betas = {beta: keys.get(f"rope.scaling.yarn_{beta}") for beta in ("beta_fast", "beta_slow")}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "attention_factor": attention * (1 + 0.1 * math.log(factor)),
        "original_max_position_embeddings": original,
        **{beta: float(value) for beta, value in betas.items() if value is not None},
    }


def _table(keys: Keys, name: str, frequencies: int) -> list[float]:
    entry = keys.tensors.get(name)
    if entry is None or entry.shape != (frequencies,):
        shape = "missing" if entry is None else f"of shape {list(entry.shape)}"
        raise CorruptFileError(
            f"{keys.header.path}: {name} is {shape}, but the rotary embedding has {frequencies} frequencies; "
            f"convert the model again."
        )
    return [float(each) for each in dequantize(entry.stored(), entry.encoding)]

"""Random blocks of every encoding of GGUF files."""

import numpy as np

from forerun import ir


def random_blocks(outputs: int, features: int, storage: str) -> np.ndarray:
    """Rows of random blocks, uint8 [outputs, bytes], whose scales are such that weights are of the order of 0.1."""
    encoding = ir.ENCODINGS[storage]
    blocks = np.random.default_rng(outputs).integers(0, 256, (outputs, features // encoding.features, encoding.bytes))
    place, largest = 0, 2**encoding.bits * (8 if encoding.factors is None else 512)
    for field, size in encoding.fields.items():
        if field in ("scale", "minimum", "subtracted"):
            halves = np.random.default_rng(place).normal(size=blocks.shape[:2]) / largest
            blocks[..., place : place + size] = halves.astype(np.float16)[..., None].view(np.uint8)
        place += size
    return blocks.astype(np.uint8).reshape(outputs, -1)

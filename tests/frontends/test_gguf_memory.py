"""The memory that the first start of a GGUF file takes."""

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tests.frontends.gguf_files import add

ROOT = Path(__file__).parent.parent.parent
BOUND = 2.2
"""The peak as a multiple of the file's size: the packed weights, and the largest matrix in the file."""
START = """
import sys, forerun
from benchmarks.memory import peak_bytes
model = forerun.compile(sys.argv[1], strategy="autoregressive", dtype="native", target="cpu", max_length=64)
assert len(model.generate([1, 2, 3], max_new_tokens=2, eos_token_id=[]).token_ids) == 2
print(peak_bytes())
"""


def write_random(path: Path, hidden: int, inner: int, vocabulary: int, kind: GGMLQuantizationType) -> int:
    """Writes a Llama of one layer with random blocks; returns the file's size."""
    heads = hidden // 64
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"embedding_length": hidden, "feed_forward_length": inner, "attention.head_count": heads}
    sizes |= {"block_count": 1, "context_length": 64, "attention.layer_norm_rms_epsilon": 1e-5}
    add(writer, {f"llama.{name}": value for name, value in sizes.items()})
    shapes = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (hidden, hidden))
    shapes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    matrices = {f"blk.0.{name}": shape for name, shape in shapes.items()} | {"token_embd": (vocabulary, hidden)}
    features, size = GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    for name, (outputs, inputs) in matrices.items():
        blocks = random.integers(256, size=(outputs, inputs // features, size), dtype=np.uint8)
        blocks[..., :2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)  # the scale
        writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=kind)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def peak_of_start(path: Path, cache: Path, monkeypatch) -> int:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(cache))
    command = [sys.executable, "-c", START, str(path)]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def test_a_first_start_takes_little_more_than_the_file_twice(tmp_path, monkeypatch):
    kind = GGMLQuantizationType.Q8_0
    write_random(tmp_path / "tiny.gguf", 64, 64, 96, kind)
    size = write_random(tmp_path / "large.gguf", 2048, 5632, 65536, kind)
    assert size > 190e6
    tiny, large = (peak_of_start(tmp_path / f"{name}.gguf", tmp_path / name, monkeypatch) for name in ("tiny", "large"))
    assert large - tiny < BOUND * size, f"{large - tiny:,} bytes for a file of {size:,}"

"""A small decoder, and modules of the torch dialect: those of `tests/frontends/mlir`, and what torch-mlir makes.

`python -m tests.frontends.mlir_cases` writes the files again, with torch-mlir:
    named.mlir    operators of ATen as torch.export leaves them; weights by name, without their data; source lines
    spelled.mlir  operators that torch-mlir has decomposed; weights as resources
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FOLDER = Path(__file__).parent / "mlir"
VOCABULARY, WIDTH, HEADS, POSITIONS = 32, 8, 2, 64


class Decoder(nn.Module):
    """One layer with learned positions, layer norms and torch's attention; its numbers are exact in few digits."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.before = nn.LayerNorm(WIDTH)
        self.projection = nn.Linear(WIDTH, 3 * WIDTH)
        self.after = nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.outer = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=generator) / 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        x = self.embedding(input_ids) + self.positions(torch.arange(length))
        split = self.projection(self.before(x)).view(1, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        x = x + mixed.transpose(1, 2).reshape(1, length, WIDTH)
        return self.head(x + self.outer(functional.silu(self.inner(self.after(x)))))


class Logits(nn.Module):
    """A transformers model as a function of token ids, with all buffers where torch-mlir looks for them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for module in model.modules():
            for name, buffer in [*module.named_buffers(recurse=False)]:
                module.register_buffer(name, buffer)
        self.model = model.eval()

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids, use_cache=False).logits


def export(module: nn.Module, most: int = POSITIONS) -> torch.export.ExportedProgram:
    length = torch.export.Dim("length", min=2, max=most)
    with torch.no_grad():
        return torch.export.export(module, (torch.arange(11)[None],), dynamic_shapes=({1: length},), strict=False)


def torch_dialect(program: torch.export.ExportedProgram, output_type: str = "torch", **options: Any) -> Any:
    """The module object that torch-mlir makes of a program."""
    from torch_mlir import fx

    return fx.export_and_import(program, output_type=output_type, **options)


def generic(module: Any, **options: Any) -> str:
    return module.operation.get_asm(print_generic_op_form=True, **options)


def named_module(decoder: nn.Module) -> Any:
    """A module whose weights have their names in the model, and no data."""
    from torch_mlir import ir
    from torch_mlir.extras.fx_importer import FxImporterHooks

    class Named(FxImporterHooks):
        def resolve_literal(self, gni: Any, literal: Any, info: Any) -> Any:
            name = next((name for name, each in state.items() if each is literal), None)
            if name is None:
                return None
            sizes = "x".join(map(str, literal.shape))
            value = ir.Attribute.parse(f"dense_resource<{name}> : tensor<{sizes}xf32>")
            kind = gni._cc.tensor_to_vtensor_type(literal)
            return ir.Operation.create("torch.vtensor.literal", [kind], attributes={"value": value}).result

    program = export(decoder).run_decompositions({})
    state = program.state_dict
    options = {"decomposition_table": {}, "import_symbolic_shape_expressions": True}
    return torch_dialect(program, "raw", hooks=Named(), **options)


def write_files() -> None:
    text = generic(named_module(Decoder()), enable_debug_info=True)
    files = {
        "named.mlir": re.sub(r'"[^"\n]*/([\w.]+\.py)"', r'"\1"', text),
        "spelled.mlir": generic(torch_dialect(export(Decoder()))),
    }
    for name, written in files.items():
        (FOLDER / name).write_text(written, encoding="utf-8")


if __name__ == "__main__":
    write_files()

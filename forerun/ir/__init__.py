"""The `spec` dialect: types, operations, verifier, text and reference interpreter. Nothing else sees xDSL."""

from xdsl.context import Context
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, LocationAttr, ModuleOp, StringAttr
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    GreedyRewritePatternApplier,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError, VerifyException

from forerun.dims import Dim
from forerun.ir.blocks import ENCODINGS, Encoding, Numbers
from forerun.ir.builder import Builder
from forerun.ir.decoder import Attention, Rotary, TreeAttention
from forerun.ir.dialect import OPERATIONS, load_dialects
from forerun.ir.effects import is_pure, only_reads
from forerun.ir.elementwise import COMPARISONS, FUNCTIONS, Cast, Constant, Iota, Map, Parameter, broadcast_dims
from forerun.ir.exchange import Receive, Send
from forerun.ir.families import AlongAxes, Computation, Elementwise, Exchange, StepOperation
from forerun.ir.foreign import Resource, foreign_attributes, foreign_line, foreign_name, foreign_type, parse_foreign
from forerun.ir.interpreter import OutsideTableError, called, evaluate, new_states, run_body, with_derived
from forerun.ir.operation import Environment, SpecOperation, ValueOperation, tensor_type
from forerun.ir.products import (
    BFLOAT16,
    CHUNK,
    INT8,
    ExpertLinear,
    LayerNorm,
    Linear,
    MatMul,
    RMSNorm,
    WeightProduct,
    numbers_read,
)
from forerun.ir.properties import Symbol, encode
from forerun.ir.recurrences import Recurrence, TreeRecurrence, Window, WithBody
from forerun.ir.reductions import REDUCTIONS, Reduce, Scan, Softmax, TopK
from forerun.ir.states import Ancestors, StateRead, StateWrite
from forerun.ir.storage import BLOCK_STORAGES, STORAGES, as_stored
from forerun.ir.structure import (
    Function,
    Kernel,
    Return,
    State,
    Weight,
    Yield,
    backward_slice,
    entries,
    functions,
    states,
    walk,
    weights,
)
from forerun.ir.tables import FunctionTable, OperationTable, ReductionTable, each_of, refused
from forerun.ir.text import parse_ir, print_ir
from forerun.ir.types import INTEGER_DTYPES, TensorType, dtype_name, torch_dtype
from forerun.ir.verify import neighbourhood, verify
from forerun.ir.views import Broadcast, Concat, Gather, Reshape, Slice, TakeAlong, Transpose, first_of

__all__ = [
    "BFLOAT16",
    "BLOCK_STORAGES",
    "CHUNK",
    "COMPARISONS",
    "ENCODINGS",
    "FUNCTIONS",
    "INT8",
    "INTEGER_DTYPES",
    "OPERATIONS",
    "REDUCTIONS",
    "STORAGES",
    "AlongAxes",
    "Ancestors",
    "ArgSpecParseError",
    "Attention",
    "Block",
    "Broadcast",
    "Builder",
    "Cast",
    "Computation",
    "Concat",
    "Constant",
    "Context",
    "Dim",
    "Elementwise",
    "Encoding",
    "Environment",
    "Exchange",
    "ExpertLinear",
    "FileLineColLoc",
    "Function",
    "FunctionTable",
    "Gather",
    "GreedyRewritePatternApplier",
    "InsertPoint",
    "IntAttr",
    "Iota",
    "Kernel",
    "LayerNorm",
    "Linear",
    "LocationAttr",
    "Map",
    "MatMul",
    "ModuleOp",
    "ModulePass",
    "Numbers",
    "Operation",
    "OperationTable",
    "OutsideTableError",
    "Parameter",
    "PatternRewriteWalker",
    "PatternRewriter",
    "RMSNorm",
    "Receive",
    "Recurrence",
    "Reduce",
    "ReductionTable",
    "Region",
    "Reshape",
    "Resource",
    "Return",
    "RewritePattern",
    "Rewriter",
    "Rotary",
    "SSAValue",
    "Scan",
    "Send",
    "Slice",
    "Softmax",
    "SpecOperation",
    "State",
    "StateRead",
    "StateWrite",
    "StepOperation",
    "StringAttr",
    "Symbol",
    "TakeAlong",
    "TensorType",
    "TopK",
    "Transpose",
    "TreeAttention",
    "TreeRecurrence",
    "ValueOperation",
    "VerifyException",
    "Weight",
    "WeightProduct",
    "Window",
    "WithBody",
    "Yield",
    "as_stored",
    "backward_slice",
    "broadcast_dims",
    "called",
    "dtype_name",
    "each_of",
    "encode",
    "entries",
    "evaluate",
    "first_of",
    "foreign_attributes",
    "foreign_line",
    "foreign_name",
    "foreign_type",
    "functions",
    "is_pure",
    "load_dialects",
    "neighbourhood",
    "new_states",
    "numbers_read",
    "only_reads",
    "op_type_rewrite_pattern",
    "parse_foreign",
    "parse_ir",
    "parse_pipeline",
    "print_ir",
    "refused",
    "run_body",
    "states",
    "tensor_type",
    "torch_dtype",
    "verify",
    "walk",
    "weights",
    "with_derived",
]

// RUN: not forerun-opt %s --split-input-file -p sequence-axis 2>&1 | filecheck %s

// The errors stand first: they went to the standard error.

// CHECK: The model cannot be decoded position by position: reduce at model.py:7 reduces over the whole sequence; compile a causal decoder instead.
// CHECK-NEXT: %table = spec.parameter
// CHECK-NEXT: %hidden = spec.gather
// CHECK-NEXT: > %mean = spec.reduce
// CHECK: attention at encoder.py:31 attends to later positions
// CHECK: slice at tail.py:5 takes the end of the sequence
// CHECK: // sequence-axis: constant 1, positional 2, row-local 3, causal 1

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %hidden = spec.gather(%table, %input_ids) -> !spec.tensor<[1, T, 4], f32>
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %place = spec.gather(%table, %positions) -> !spec.tensor<[T, 4], f32>
  %x = spec.map(%hidden, %place) {function = "add"} -> !spec.tensor<[1, T, 4], f32>
  %y = spec.attention(%x, %x, %x) {scale = 0.5, causal = true} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}

// -----

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %hidden = spec.gather(%table, %input_ids) -> !spec.tensor<[1, T, 4], f32>
  %mean = spec.reduce(%hidden) {function = "mean", dims = [1], keep = true} -> !spec.tensor<[1, 1, 4], f32> loc("model.py":7:0)
  %y = spec.map(%hidden, %mean) {function = "sub"} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}

// -----

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %y = spec.attention(%x, %x, %x) {scale = 0.5} -> !spec.tensor<[1, T, 4], f32> loc("encoder.py":31:0)
  spec.return(%y)
}

// -----

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %last = spec.slice(%x) {dim = 1, start = "T-1", stop = "T"} -> !spec.tensor<[1, 1, 4], f32> loc("tail.py":5:0)
  %y = spec.map(%x, %last) {function = "mul"} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}

// -----

// What looks ahead is no error where the result does not need it.

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  // CHECK: // sequence-axis: row-local 2, global 1
  %unused = spec.reduce(%x) {function = "sum", dims = [1]} -> !spec.tensor<[1, 4], f32>
  %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}

// RUN: not forerun-opt %s --split-input-file -p tabulate-positions{max_length=32} 2>&1 | filecheck %s

// A prefix that all positions see: the row looks ahead.

// CHECK: attention at prefix.py:3 lets position 0 see position 1

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%positions) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %before = spec.map(%positions, %rows) {function = "le"} -> !spec.tensor<[T, T], i1>
  %four = spec.constant() {value = 4, dtype = "i64"} -> !spec.tensor<[], i64>
  %prefix = spec.map(%positions, %four) {function = "lt"} -> !spec.tensor<[T], i1>
  %mask = spec.map(%before, %prefix) {function = "or"} -> !spec.tensor<[T, T], i1>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 4], f32> loc("prefix.py":3:0)
  spec.return(%y)
}

// -----

// Every second position is seen: gaps.

// CHECK: The attention mask at gaps.py:4 has gaps

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%positions) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %before = spec.map(%positions, %rows) {function = "le"} -> !spec.tensor<[T, T], i1>
  %behind = spec.map(%rows, %positions) {function = "sub"} -> !spec.tensor<[T, T], i64>
  %two = spec.constant() {value = 2, dtype = "i64"} -> !spec.tensor<[], i64>
  %rest = spec.map(%behind, %two) {function = "remainder"} -> !spec.tensor<[T, T], i64>
  %zero = spec.constant() {value = 0, dtype = "i64"} -> !spec.tensor<[], i64>
  %even = spec.map(%rest, %zero) {function = "eq"} -> !spec.tensor<[T, T], i1>
  %mask = spec.map(%before, %even) {function = "and"} -> !spec.tensor<[T, T], i1>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 4], f32> loc("gaps.py":4:0)
  spec.return(%y)
}

// -----

// The mask is made of a weight, and the text came without weights.

// CHECK: This pass reads the values of weight @bias, but the IR came without weights.

spec.weight @bias {shape = [32, 32], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %bias = spec.parameter @bias() {shape = [32, 32], dtype = "f32"} -> !spec.tensor<[32, 32], f32>
  %rows = spec.slice(%bias) {dim = 0, start = 0, stop = "T", step = 1} -> !spec.tensor<[T, 32], f32>
  %mask = spec.slice(%rows) {dim = 1, start = 0, stop = "T", step = 1} -> !spec.tensor<[T, T], f32>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}

// RUN: not forerun-opt %s --split-input-file -p insert-kv-cache 2>&1 | filecheck %s

// A convolution over positions would need a state of its own.

// CHECK: spec.slice at loc("mixer.py":9:0) mixes positions outside an attention

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %x = spec.cast(%input_ids) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %row = spec.broadcast(%zero) {shape = [1, 1]} -> !spec.tensor<[1, 1], f32>
  %before = spec.slice(%x) {dim = 1, start = 0, stop = "T-1", step = 1} -> !spec.tensor<[1, T-1], f32> loc("mixer.py":9:0)
  %shifted = spec.concat(%row, %before) {dim = 1} -> !spec.tensor<[1, T], f32>
  %sum = spec.map(%x, %shifted) {function = "add"} -> !spec.tensor<[1, T], f32>
  %y = spec.reshape(%sum) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
  spec.return(%y)
}

// -----

// A batch of two has no place in a step's rows.

// CHECK: has a batch; trace the model with a batch of one

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %number = spec.cast(%input_ids) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  %column = spec.reshape(%number) {shape = [1, 1, "T", 1]} -> !spec.tensor<[1, 1, T, 1], f32>
  %x = spec.broadcast(%column) {shape = [2, 1, "T", 4]} -> !spec.tensor<[2, 1, T, 4], f32>
  %y = spec.attention(%x, %x, %x) {scale = 0.5, causal = true} -> !spec.tensor<[2, 1, T, 4], f32>
  spec.return(%y)
}

// -----

// float32 holds a count of positions, but not every sum of token ids.

// CHECK: spec.scan at loc("ids.py":3:0) adds up whole numbers along the sequence

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %sum = spec.scan(%input_ids) {dim = 1} -> !spec.tensor<[1, T], i64> loc("ids.py":3:0)
  %x = spec.cast(%sum) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  %y = spec.reshape(%x) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
  spec.return(%y)
}

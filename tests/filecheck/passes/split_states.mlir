// RUN: forerun-opt %s -p split-states | filecheck %s

// A state that holds one for each of two layers: each is read and rewritten in its own place.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.func @cached(%token: !spec.tensor<[1, 1], i64>, %both: !spec.tensor<[1, 4, 2], f32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %x = spec.gather(%table, %token) -> !spec.tensor<[1, 1, 4], f32>
  %column = spec.reshape(%x) {shape = [1, 4, 1]} -> !spec.tensor<[1, 4, 1], f32>
  %first = spec.slice(%both) {dim = 2, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 4, 1], f32>
  %second = spec.slice(%both) {dim = 2, start = 1, stop = 2, step = 1} -> !spec.tensor<[1, 4, 1], f32>
  %sum = spec.map(%first, %column) {function = "add"} -> !spec.tensor<[1, 4, 1], f32>
  %after = spec.concat(%sum, %second) {dim = 2} -> !spec.tensor<[1, 4, 2], f32>
  %more = spec.map(%second, %sum) {function = "add"} -> !spec.tensor<[1, 4, 1], f32>
  %kept = spec.slice(%after) {dim = 2, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 4, 1], f32>
  %last = spec.concat(%kept, %more) {dim = 2} -> !spec.tensor<[1, 4, 2], f32>
  %logits = spec.reshape(%more) {shape = [1, 1, 4]} -> !spec.tensor<[1, 1, 4], f32>
  spec.return(%logits, %last)
}
// CHECK: spec.func @cached(%token: !spec.tensor<[1, 1], i64>, [[S0:%[0-9a-z_]+]]: !spec.tensor<[1, 4, 1], f32>, [[S1:%[0-9a-z_]+]]: !spec.tensor<[1, 4, 1], f32>) {
// CHECK: %sum = spec.map([[S0]], %column) {function = "add"} -> !spec.tensor<[1, 4, 1], f32>
// CHECK: %more = spec.map([[S1]], %sum) {function = "add"} -> !spec.tensor<[1, 4, 1], f32>
// CHECK: spec.return(%logits, %sum, %more)

// RUN: forerun-opt %s --split-input-file -p raise-experts,canonicalize | filecheck %s

// A vector times the gathered matrix of each choice, plus the gathered bias: the input is the same for all choices.

spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %w: !spec.tensor<[5, 6, 8], f32>, %b: !spec.tensor<[5, 6], f32>, %ids: !spec.tensor<[T, 2], i64>) {
  %matrices = spec.gather(%w, %ids) -> !spec.tensor<[T, 2, 6, 8], f32>
  %one = spec.reshape(%x) {shape = ["T", 1, 8]} -> !spec.tensor<[T, 1, 8], f32>
  %wide = spec.broadcast(%one) {shape = ["T", 2, 8]} -> !spec.tensor<[T, 2, 8], f32>
  %columns = spec.reshape(%wide) {shape = ["T", 2, 8, 1]} -> !spec.tensor<[T, 2, 8, 1], f32>
  %product = spec.matmul(%matrices, %columns) -> !spec.tensor<[T, 2, 6, 1], f32>
  %flat = spec.reshape(%product) {shape = ["T", 2, 6]} -> !spec.tensor<[T, 2, 6], f32>
  %biases = spec.gather(%b, %ids) -> !spec.tensor<[T, 2, 6], f32>
  %y = spec.map(%flat, %biases) {function = "add"} -> !spec.tensor<[T, 2, 6], f32>
  spec.return(%y)
}
// CHECK: %y = spec.expert_linear(%x, %w, %ids, %b) -> !spec.tensor<[T, 2, 6], f32>
// CHECK-NEXT: spec.return(%y)

// -----

// The transposed spelling, with an input for each choice.

spec.func @forward(%x: !spec.tensor<[T, 2, 8], f32>, %w: !spec.tensor<[5, 8, 6], f32>, %ids: !spec.tensor<[T, 2], i64>) {
  %matrices = spec.gather(%w, %ids) -> !spec.tensor<[T, 2, 8, 6], f32>
  %rows = spec.reshape(%x) {shape = ["T", 2, 1, 8]} -> !spec.tensor<[T, 2, 1, 8], f32>
  %y = spec.matmul(%rows, %matrices) -> !spec.tensor<[T, 2, 1, 6], f32>
  spec.return(%y)
}
// CHECK: %[[TURNED:.*]] = spec.transpose(%w) {permutation = [0, 2, 1]} -> !spec.tensor<[5, 6, 8], f32>
// CHECK-NEXT: %{{.*}} = spec.expert_linear(%x, %[[TURNED]], %ids) -> !spec.tensor<[T, 2, 6], f32>

// -----

// One expert for each row.

spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %w: !spec.tensor<[5, 6, 8], f32>, %ids: !spec.tensor<[T], i64>) {
  %matrices = spec.gather(%w, %ids) -> !spec.tensor<[T, 6, 8], f32>
  %columns = spec.reshape(%x) {shape = ["T", 8, 1]} -> !spec.tensor<[T, 8, 1], f32>
  %y = spec.matmul(%matrices, %columns) -> !spec.tensor<[T, 6, 1], f32>
  spec.return(%y)
}
// CHECK: %[[CHOICES:.*]] = spec.reshape(%ids) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
// CHECK-NEXT: %{{.*}} = spec.expert_linear(%x, %w, %[[CHOICES]]) -> !spec.tensor<[T, 1, 6], f32>

// -----

// Declines: several vectors for each choice.

spec.func @forward(%x: !spec.tensor<[T, 2, 8, 3], f32>, %w: !spec.tensor<[5, 6, 8], f32>, %ids: !spec.tensor<[T, 2], i64>) {
  %matrices = spec.gather(%w, %ids) -> !spec.tensor<[T, 2, 6, 8], f32>
  %y = spec.matmul(%matrices, %x) -> !spec.tensor<[T, 2, 6, 3], f32>
  spec.return(%y)
}
// CHECK-NOT: spec.expert_linear
// CHECK: spec.matmul

// -----

// Declines: another vector than the expert's own bias is added.

spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %w: !spec.tensor<[5, 6, 8], f32>, %b: !spec.tensor<[5, 6], f32>, %ids: !spec.tensor<[T, 2], i64>, %others: !spec.tensor<[T, 2], i64>) {
  %product = spec.expert_linear(%x, %w, %ids) -> !spec.tensor<[T, 2, 6], f32>
  %biases = spec.gather(%b, %others) -> !spec.tensor<[T, 2, 6], f32>
  %y = spec.map(%product, %biases) {function = "add"} -> !spec.tensor<[T, 2, 6], f32>
  spec.return(%y)
}
// CHECK: %product = spec.expert_linear(%x, %w, %ids) -> !spec.tensor<[T, 2, 6], f32>
// CHECK: %y = spec.map(%product, %biases) {function = "add"}

// -----

// All experts for all rows: each row chose all of them. The input is the same for all.

spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %w: !spec.tensor<[5, 8, 6], f32>) {
  %one = spec.reshape(%x) {shape = [1, "T", 8]} -> !spec.tensor<[1, T, 8], f32>
  %wide = spec.broadcast(%one) {shape = [5, "T", 8]} -> !spec.tensor<[5, T, 8], f32>
  %y = spec.matmul(%wide, %w) -> !spec.tensor<[5, T, 6], f32>
  spec.return(%y)
}
// CHECK: %[[ALL:.*]] = spec.iota() {size = 5} -> !spec.tensor<[5], i64>
// CHECK-NEXT: %[[IDS:.*]] = spec.broadcast(%[[ALL]]) {shape = ["T", 5]} -> !spec.tensor<[T, 5], i64>
// CHECK-NEXT: %[[TURNED:.*]] = spec.transpose(%w) {permutation = [0, 2, 1]} -> !spec.tensor<[5, 6, 8], f32>
// CHECK-NEXT: %[[PRODUCT:.*]] = spec.expert_linear(%x, %[[TURNED]], %[[IDS]]) -> !spec.tensor<[T, 5, 6], f32>
// CHECK-NEXT: %{{.*}} = spec.transpose(%[[PRODUCT]]) {permutation = [1, 0, 2]} -> !spec.tensor<[5, T, 6], f32>

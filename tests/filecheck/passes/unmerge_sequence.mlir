// RUN: forerun-opt %s --split-input-file -p unmerge-sequence,canonicalize | filecheck %s

// Tokens are repeated for their two choices and merged with them; the computation in between keeps both dimensions.

spec.func @forward(%x: !spec.tensor<[T, 4], f32>, %ids: !spec.tensor<[T, 2], i64>, %w: !spec.tensor<[3, 4], f32>) {
  %apart = spec.reshape(%x) {shape = ["T", 1, 4]} -> !spec.tensor<[T, 1, 4], f32>
  %wide = spec.broadcast(%apart) {shape = ["T", 2, 4]} -> !spec.tensor<[T, 2, 4], f32>
  %merged = spec.reshape(%wide) {shape = ["2*T", 4]} -> !spec.tensor<[2*T, 4], f32>
  %flat = spec.reshape(%ids) {shape = ["2*T"]} -> !spec.tensor<[2*T], i64>
  %rows = spec.gather(%w, %flat) -> !spec.tensor<[2*T, 4], f32>
  %product = spec.map(%merged, %rows) {function = "mul"} -> !spec.tensor<[2*T, 4], f32>
  %half = spec.slice(%product) {dim = 1, start = 0, stop = 2, step = 1} -> !spec.tensor<[2*T, 2], f32>
  %total = spec.reduce(%half) {function = "sum", dims = [1], keep = true} -> !spec.tensor<[2*T, 1], f32>
  %scaled = spec.map(%half, %total) {function = "div"} -> !spec.tensor<[2*T, 2], f32>
  %choices = spec.reshape(%scaled) {shape = ["T", 2, 2]} -> !spec.tensor<[T, 2, 2], f32>
  %sum = spec.reduce(%choices) {function = "sum", dims = [1], keep = false} -> !spec.tensor<[T, 2], f32>
  spec.return(%sum)
}
// CHECK: // unmerge-sequence: 1 views take a merged dimension apart
// CHECK-NOT: 2*T
// CHECK: %rows = spec.gather(%w, %ids) -> !spec.tensor<[T, 2, 4], f32>
// CHECK-NEXT: %product = spec.map(%apart, %rows) {function = "mul"} -> !spec.tensor<[T, 2, 4], f32>
// CHECK-NEXT: %half = spec.slice(%product) {dim = 2, start = 0, stop = 2, step = 1} -> !spec.tensor<[T, 2, 2], f32>
// CHECK-NEXT: %total = spec.reduce(%half) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[T, 2, 1], f32>
// CHECK-NEXT: %scaled = spec.map(%half, %total) {function = "div"} -> !spec.tensor<[T, 2, 2], f32>
// CHECK-NEXT: %sum = spec.reduce(%scaled) {function = "sum", dims = [1], keep = false} -> !spec.tensor<[T, 2], f32>

// -----

// Experts in front of tokens are another order, and stay so.

spec.func @forward(%x: !spec.tensor<[T, 4], f32>) {
  %apart = spec.reshape(%x) {shape = [1, "T", 4]} -> !spec.tensor<[1, T, 4], f32>
  %wide = spec.broadcast(%apart) {shape = [3, "T", 4]} -> !spec.tensor<[3, T, 4], f32>
  %merged = spec.reshape(%wide) {shape = ["3*T", 4]} -> !spec.tensor<[3*T, 4], f32>
  %y = spec.map(%merged) {function = "exp"} -> !spec.tensor<[3*T, 4], f32>
  %again = spec.reshape(%y) {shape = [3, "T", 4]} -> !spec.tensor<[3, T, 4], f32>
  spec.return(%again)
}
// CHECK-NOT: 3*T
// CHECK: spec.map(%{{.*}}) {function = "exp"} -> !spec.tensor<[3, T, 4], f32>

// -----

// Declines: a reduction over merged rows, and rows that are taken apart otherwise than they were merged.

spec.func @forward(%x: !spec.tensor<[T, 2, 4], f32>) {
  %merged = spec.reshape(%x) {shape = ["2*T", 4]} -> !spec.tensor<[2*T, 4], f32>
  %total = spec.reduce(%merged) {function = "sum", dims = [0], keep = false} -> !spec.tensor<[4], f32>
  spec.return(%total)
}
// CHECK: %merged = spec.reshape(%x) {shape = ["2*T", 4]} -> !spec.tensor<[2*T, 4], f32>
// CHECK-NEXT: %total = spec.reduce(%merged)

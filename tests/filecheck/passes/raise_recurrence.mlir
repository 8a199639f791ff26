// RUN: forerun-opt %s --split-input-file -p raise-recurrence | filecheck %s

// One token's step: a state that is rewritten, and is read for one number for each of four; a state that is appended to.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.func @cached(%token: !spec.tensor<[1, 1], i64>, %sum: !spec.tensor<[1, 4, 4], f32>, %seen: !spec.tensor<[1, 1, S, 4], f32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %x = spec.gather(%table, %token) -> !spec.tensor<[1, 1, 4], f32>
  %column = spec.reshape(%x) {shape = [1, 4, 1]} -> !spec.tensor<[1, 4, 1], f32>
  %outer = spec.map(%column, %x) {function = "mul"} -> !spec.tensor<[1, 4, 4], f32>
  %after = spec.map(%sum, %outer) {function = "add"} -> !spec.tensor<[1, 4, 4], f32>
  %read = spec.matmul(%after, %column) -> !spec.tensor<[1, 4, 1], f32>
  %row = spec.reshape(%read) {shape = [1, 1, 1, 4]} -> !spec.tensor<[1, 1, 1, 4], f32>
  %all = spec.concat(%seen, %row) {dim = 2} -> !spec.tensor<[1, 1, S+1, 4], f32>
  %y = spec.attention(%row, %all, %all) {scale = 0.5} -> !spec.tensor<[1, 1, 1, 4], f32>
  %logits = spec.reshape(%y) {shape = [1, 1, 4]} -> !spec.tensor<[1, 1, 4], f32>
  spec.return(%logits, %after, %all)
}
// CHECK: spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
// CHECK-NEXT: [[V0:%[0-9a-z_]+]] = spec.reshape(%input_ids) {shape = ["T", 1, 1]} -> !spec.tensor<[T, 1, 1], i64>
// CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
// CHECK-NEXT: %x = spec.gather(%table, [[V0]]) -> !spec.tensor<[T, 1, 1, 4], f32>
// CHECK-NEXT: %column = spec.reshape(%x) {shape = ["T", 1, 4, 1]} -> !spec.tensor<[T, 1, 4, 1], f32>
// CHECK-NEXT: [[V1:%[0-9a-z_]+]] = spec.recurrence(%column, %x) {size = "T"} {
// CHECK-NEXT: ^bb0([[V2:%[0-9a-z_]+]]: !spec.tensor<[1, 4, 4], f32>, [[V3:%[0-9a-z_]+]]: !spec.tensor<[1, 4, 1], f32>, [[V4:%[0-9a-z_]+]]: !spec.tensor<[1, 1, 4], f32>):
// CHECK-NEXT: [[V5:%[0-9a-z_]+]] = spec.map([[V3]], [[V4]]) {function = "mul"} -> !spec.tensor<[1, 4, 4], f32>
// CHECK-NEXT: [[V6:%[0-9a-z_]+]] = spec.map([[V2]], [[V5]]) {function = "add"} -> !spec.tensor<[1, 4, 4], f32>
// CHECK-NEXT: [[V7:%[0-9a-z_]+]] = spec.transpose([[V3]]) {permutation = [0, 2, 1]} -> !spec.tensor<[1, 1, 4], f32>
// CHECK-NEXT: [[V8:%[0-9a-z_]+]] = spec.map([[V6]], [[V7]]) {function = "mul"} -> !spec.tensor<[1, 4, 4], f32>
// CHECK-NEXT: [[V9:%[0-9a-z_]+]] = spec.reduce([[V8]]) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, 4, 1], f32>
// CHECK-NEXT: spec.yield([[V6]], [[V9]])
// CHECK-NEXT: } -> !spec.tensor<[T, 1, 4, 1], f32>
// CHECK-NEXT: %row = spec.reshape([[V1]]) {shape = ["T", 1, 1, 1, 4]} -> !spec.tensor<[T, 1, 1, 1, 4], f32>
// CHECK-NEXT: [[V10:%[0-9a-z_]+]] = spec.reshape(%row) {shape = ["T", 1, 1, 4]} -> !spec.tensor<[T, 1, 1, 4], f32>
// CHECK-NEXT: [[V11:%[0-9a-z_]+]] = spec.transpose([[V10]]) {permutation = [1, 2, 0, 3]} -> !spec.tensor<[1, 1, T, 4], f32>
// CHECK-NEXT: [[V12:%[0-9a-z_]+]] = spec.attention([[V11]], [[V11]], [[V11]]) {scale = 0.5, causal = true} -> !spec.tensor<[1, 1, T, 4], f32>
// CHECK-NEXT: [[V13:%[0-9a-z_]+]] = spec.transpose([[V12]]) {permutation = [2, 0, 1, 3]} -> !spec.tensor<[T, 1, 1, 4], f32>
// CHECK-NEXT: [[V14:%[0-9a-z_]+]] = spec.reshape([[V13]]) {shape = ["T", 1, 1, 1, 4]} -> !spec.tensor<[T, 1, 1, 1, 4], f32>
// CHECK-NEXT: %logits = spec.reshape([[V14]]) {shape = ["T", 1, 1, 4]} -> !spec.tensor<[T, 1, 1, 4], f32>
// CHECK-NEXT: [[V15:%[0-9a-z_]+]] = spec.reshape(%logits) {shape = [1, "T", 4]} -> !spec.tensor<[1, T, 4], f32>
// CHECK-NEXT: spec.return([[V15]])
// CHECK-NEXT: }


// -----

// A state that is moved on by one place is a window over the values of earlier positions.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.weight @taps {shape = [4, 3], dtype = "f32"}
spec.func @cached(%token: !spec.tensor<[1, 1], i64>, %window: !spec.tensor<[1, 4, 2], f32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %taps = spec.parameter @taps() {shape = [4, 3], dtype = "f32"} -> !spec.tensor<[4, 3], f32>
  %x = spec.gather(%table, %token) -> !spec.tensor<[1, 1, 4], f32>
  %column = spec.reshape(%x) {shape = [1, 4, 1]} -> !spec.tensor<[1, 4, 1], f32>
  %all = spec.concat(%window, %column) {dim = 2} -> !spec.tensor<[1, 4, 3], f32>
  %after = spec.slice(%all) {dim = 2, start = 1, stop = 3, step = 1} -> !spec.tensor<[1, 4, 2], f32>
  %weighted = spec.map(%all, %taps) {function = "mul"} -> !spec.tensor<[1, 4, 3], f32>
  %y = spec.reduce(%weighted) {function = "sum", dims = [2]} -> !spec.tensor<[1, 4], f32>
  %logits = spec.reshape(%y) {shape = [1, 1, 4]} -> !spec.tensor<[1, 1, 4], f32>
  spec.return(%logits, %after)
}
// CHECK: spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
// CHECK: %column = spec.reshape(%x) {shape = ["T", 1, 4, 1]} -> !spec.tensor<[T, 1, 4, 1], f32>
// CHECK-NEXT: [[W0:%[0-9a-z_]+]] = spec.reshape(%column) {shape = ["T", 1, 4]} -> !spec.tensor<[T, 1, 4], f32>
// CHECK-NEXT: [[W1:%[0-9a-z_]+]] = spec.window([[W0]]) {count = 2} -> !spec.tensor<[T, 2, 1, 4], f32>
// CHECK-NEXT: [[W2:%[0-9a-z_]+]] = spec.transpose([[W1]]) {permutation = [0, 2, 3, 1]} -> !spec.tensor<[T, 1, 4, 2], f32>
// CHECK-NEXT: %all = spec.concat([[W2]], %column) {dim = 3} -> !spec.tensor<[T, 1, 4, 3], f32>

// -----

// A window over what is computed from it is a state that is rewritten.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.func @cached(%token: !spec.tensor<[1, 1], i64>, %window: !spec.tensor<[1, 4, 2], f32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %x = spec.gather(%table, %token) -> !spec.tensor<[1, 1, 4], f32>
  %column = spec.reshape(%x) {shape = [1, 4, 1]} -> !spec.tensor<[1, 4, 1], f32>
  %sum = spec.reduce(%window) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, 4, 1], f32>
  %next = spec.map(%sum, %column) {function = "add"} -> !spec.tensor<[1, 4, 1], f32>
  %all = spec.concat(%window, %next) {dim = 2} -> !spec.tensor<[1, 4, 3], f32>
  %after = spec.slice(%all) {dim = 2, start = 1, stop = 3, step = 1} -> !spec.tensor<[1, 4, 2], f32>
  %logits = spec.reshape(%next) {shape = [1, 1, 4]} -> !spec.tensor<[1, 1, 4], f32>
  spec.return(%logits, %after)
}
// CHECK: spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
// CHECK-NOT: spec.window
// CHECK: spec.recurrence

// RUN: forerun-opt %s --split-input-file -p join-experts | filecheck %s

// Two experts, each for the rows that chose it, and the sum of both: the weights of those that a row chose.

spec.weight @experts {shape = [2, 6, 8], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %scores: !spec.tensor<[T, 2], f32>) {
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %none = spec.constant() {value = 0, dtype = "i64"} -> !spec.tensor<[], i64>
  %weights, %ids = spec.topk(%scores) {k = 2} -> !spec.tensor<[T, 2], f32>, !spec.tensor<[T, 2], i64>
  %numbers = spec.iota() {size = 2} -> !spec.tensor<[2], i64>
  %column = spec.reshape(%ids) {shape = ["T", 2, 1]} -> !spec.tensor<[T, 2, 1], i64>
  %equal = spec.map(%column, %numbers) {function = "eq"} -> !spec.tensor<[T, 2, 2], i1>
  %cast = spec.cast(%equal) {dtype = "i64"} -> !spec.tensor<[T, 2, 2], i64>
  %hot = spec.transpose(%cast) {permutation = [2, 1, 0]} -> !spec.tensor<[2, 2, T], i64>
  %experts = spec.parameter @experts() {shape = [2, 6, 8], dtype = "f32"} -> !spec.tensor<[2, 6, 8], f32>
  %rows = spec.broadcast(%x) {shape = [2, "T", 8]} -> !spec.tensor<[2, T, 8], f32>
  %first = spec.slice(%experts) {dim = 0, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 6, 8], f32>
  %w0 = spec.reshape(%first) {shape = [6, 8]} -> !spec.tensor<[6, 8], f32>
  %y0 = spec.linear(%rows, %w0) -> !spec.tensor<[2, T, 6], f32>
  %second = spec.slice(%experts) {dim = 0, start = 1, stop = 2, step = 1} -> !spec.tensor<[1, 6, 8], f32>
  %w1 = spec.reshape(%second) {shape = [6, 8]} -> !spec.tensor<[6, 8], f32>
  %y1 = spec.linear(%rows, %w1) -> !spec.tensor<[2, T, 6], f32>
  %h0 = spec.slice(%hot) {dim = 0, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 2, T], i64>
  %c0 = spec.reshape(%h0) {shape = [2, "T"]} -> !spec.tensor<[2, T], i64>
  %t0 = spec.map(%c0, %none) {function = "ne"} -> !spec.tensor<[2, T], i1>
  %m0 = spec.reshape(%t0) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], i1>
  %k0 = spec.map(%m0, %y0, %zero) {function = "where"} -> !spec.tensor<[2, T, 6], f32>
  %s0 = spec.reduce(%k0) {function = "sum", dims = [0]} -> !spec.tensor<[T, 6], f32>
  %h1 = spec.slice(%hot) {dim = 0, start = 1, stop = 2, step = 1} -> !spec.tensor<[1, 2, T], i64>
  %c1 = spec.reshape(%h1) {shape = [2, "T"]} -> !spec.tensor<[2, T], i64>
  %t1 = spec.map(%c1, %none) {function = "ne"} -> !spec.tensor<[2, T], i1>
  %m1 = spec.reshape(%t1) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], i1>
  %k1 = spec.map(%m1, %y1, %zero) {function = "where"} -> !spec.tensor<[2, T, 6], f32>
  %s1 = spec.reduce(%k1) {function = "sum", dims = [0]} -> !spec.tensor<[T, 6], f32>
  %sum = spec.map(%s0, %s1) {function = "add"} -> !spec.tensor<[T, 6], f32>
  spec.return(%sum)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %scores: !spec.tensor<[T, 2], f32>) {
// CHECK: %weights, %ids = spec.topk(%scores)
// CHECK: [[Y:%[0-9a-z_]+]] = spec.expert_linear(%x, {{%[0-9a-z_]+}}, %ids) -> !spec.tensor<[T, 2, 6], f32>
// CHECK-NEXT: [[Z:%[0-9a-z_]+]] = spec.transpose([[Y]]) {permutation = [1, 0, 2]} -> !spec.tensor<[2, T, 6], f32>
// CHECK-NEXT: [[S:%[0-9a-z_]+]] = spec.reduce([[Z]]) {function = "sum", dims = [0], keep = false} -> !spec.tensor<[T, 6], f32>
// CHECK-NEXT: spec.return([[S]])

// -----

// Experts that are computed differently stay apart.

spec.weight @experts {shape = [2, 8], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %ids: !spec.tensor<[T, 1], i64>) {
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %numbers = spec.iota() {size = 2} -> !spec.tensor<[2], i64>
  %column = spec.reshape(%ids) {shape = ["T", 1, 1]} -> !spec.tensor<[T, 1, 1], i64>
  %equal = spec.map(%column, %numbers) {function = "eq"} -> !spec.tensor<[T, 1, 2], i1>
  %hot = spec.transpose(%equal) {permutation = [2, 1, 0]} -> !spec.tensor<[2, 1, T], i1>
  %rows = spec.reshape(%x) {shape = [1, "T", 8]} -> !spec.tensor<[1, T, 8], f32>
  %y0 = spec.map(%rows) {function = "exp"} -> !spec.tensor<[1, T, 8], f32>
  %y1 = spec.map(%rows) {function = "tanh"} -> !spec.tensor<[1, T, 8], f32>
  %h0 = spec.slice(%hot) {dim = 0, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 1, T], i1>
  %m0 = spec.reshape(%h0) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], i1>
  %k0 = spec.map(%m0, %y0, %zero) {function = "where"} -> !spec.tensor<[1, T, 8], f32>
  %s0 = spec.reduce(%k0) {function = "sum", dims = [0]} -> !spec.tensor<[T, 8], f32>
  %h1 = spec.slice(%hot) {dim = 0, start = 1, stop = 2, step = 1} -> !spec.tensor<[1, 1, T], i1>
  %m1 = spec.reshape(%h1) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], i1>
  %k1 = spec.map(%m1, %y1, %zero) {function = "where"} -> !spec.tensor<[1, T, 8], f32>
  %s1 = spec.reduce(%k1) {function = "sum", dims = [0]} -> !spec.tensor<[T, 8], f32>
  %sum = spec.map(%s0, %s1) {function = "add"} -> !spec.tensor<[T, 8], f32>
  spec.return(%sum)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %ids: !spec.tensor<[T, 1], i64>) {
// CHECK: %sum = spec.map(%s0, %s1) {function = "add"} -> !spec.tensor<[T, 8], f32>
// CHECK-NEXT: spec.return(%sum)

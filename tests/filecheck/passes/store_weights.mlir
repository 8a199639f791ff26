// RUN: forerun-opt %s -p store-weights{storage=bf16} | filecheck %s

// The matrix of a linear and the table of tokens are stored; norms, biases and tables of positions are not.

spec.weight @embedding {shape = [9, 8], dtype = "f32"}
spec.weight @places {shape = [16, 8], dtype = "f32"}
spec.weight @norm {shape = [8], dtype = "f32"}
spec.weight @matrix {shape = [4, 8], dtype = "f32"}
spec.weight @bias {shape = [4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>) {
  %table = spec.parameter @embedding() {shape = [9, 8], dtype = "f32"} -> !spec.tensor<[9, 8], f32>
  %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 8], f32>
  %places = spec.parameter @places() {shape = [16, 8], dtype = "f32"} -> !spec.tensor<[16, 8], f32>
  %place = spec.gather(%places, %positions) -> !spec.tensor<[N, 8], f32>
  %sum = spec.map(%x, %place) {function = "add"} -> !spec.tensor<[N, 8], f32>
  %norm = spec.parameter @norm() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  %y = spec.rms_norm(%sum, %norm) {eps = 1.0e-05} -> !spec.tensor<[N, 8], f32>
  %matrix = spec.parameter @matrix() {shape = [4, 8], dtype = "f32"} -> !spec.tensor<[4, 8], f32>
  %bias = spec.parameter @bias() {shape = [4], dtype = "f32"} -> !spec.tensor<[4], f32>
  %z = spec.linear(%y, %matrix, %bias) -> !spec.tensor<[N, 4], f32>
  spec.return(%z)
}
// CHECK: // store-weights: 2 of 5 weights as bf16
// CHECK: spec.weight @embedding {shape = [9, 8], dtype = "f32", storage = "bf16"}
// CHECK-NEXT: spec.weight @places {shape = [16, 8], dtype = "f32"}
// CHECK-NEXT: spec.weight @norm {shape = [8], dtype = "f32"}
// CHECK-NEXT: spec.weight @matrix {shape = [4, 8], dtype = "f32", storage = "bf16"}
// CHECK-NEXT: spec.weight @bias {shape = [4], dtype = "f32"}

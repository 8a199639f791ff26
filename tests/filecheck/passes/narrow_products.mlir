// RUN: forerun-opt %s -p narrow-products{arithmetic=int8} | filecheck %s

// Products with a matrix in quantized blocks become products of integers, with a bfloat16 one of bfloat16 numbers.

spec.weight @embedding {shape = [9, 32], dtype = "f32", storage = "q8_0"}
spec.weight @blocks {shape = [64, 32], dtype = "f32", storage = "q4_0"}
spec.weight @halves {shape = [4, 64], dtype = "f32", storage = "bf16"}
spec.weight @experts {shape = [3, 64, 64], dtype = "f32", storage = "q8_0"}
spec.weight @wide {shape = [4, 4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>) {
  %table = spec.parameter @embedding() {shape = [9, 32], dtype = "f32"} -> !spec.tensor<[9, 32], f32>
  %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 32], f32>
  %blocks = spec.parameter @blocks() {shape = [64, 32], dtype = "f32"} -> !spec.tensor<[64, 32], f32>
  %y = spec.linear(%x, %blocks) -> !spec.tensor<[N, 64], f32>
  %experts = spec.parameter @experts() {shape = [3, 64, 64], dtype = "f32"} -> !spec.tensor<[3, 64, 64], f32>
  %choices = spec.reshape(%tokens) {shape = ["N", 1]} -> !spec.tensor<[N, 1], i32>
  %e = spec.expert_linear(%y, %experts, %choices) -> !spec.tensor<[N, 1, 64], f32>
  %halves = spec.parameter @halves() {shape = [4, 64], dtype = "f32"} -> !spec.tensor<[4, 64], f32>
  %z = spec.linear(%y, %halves) -> !spec.tensor<[N, 4], f32>
  %wide = spec.parameter @wide() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %u = spec.linear(%z, %wide) -> !spec.tensor<[N, 4], f32>
  spec.return(%u, %e)
}
// CHECK: // narrow-products: of 4 products 1 in bfloat16, 1 in float32, 2 in int8
// CHECK: %table = spec.parameter @embedding
// CHECK: spec.linear(%x, %blocks) {arithmetic = "int8"}
// CHECK: spec.expert_linear(%y, %experts, %choices) {arithmetic = "int8"}
// CHECK: spec.linear(%y, %halves) {arithmetic = "bfloat16"}
// CHECK: %u = spec.linear(%z, %wide) -> !spec.tensor<[N, 4], f32>

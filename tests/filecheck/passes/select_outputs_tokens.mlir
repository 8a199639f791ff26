// RUN: forerun-opt %s --split-input-file -p 'select-outputs{candidates=3 tokens=4}' | filecheck %s

// Only the first tokens have logits: the head is the first rows of its matrix, whatever is computed from each logit.

spec.func @step(%x: !spec.tensor<[N, 8], f32>, %head: !spec.tensor<[16, 8], f32>, %bias: !spec.tensor<[16], f32>) {
  %product = spec.linear(%x, %head, %bias) -> !spec.tensor<[N, 16], f32>
  %logits = spec.map(%product) {function = "tanh"} -> !spec.tensor<[N, 16], f32>
  spec.return(%logits)
}
// CHECK: [[ROWS:%[0-9]+]] = spec.slice(%head) {dim = 0, start = 0, stop = 4} -> !spec.tensor<[4, 8], f32>
// CHECK: [[BIAS:%[0-9]+]] = spec.slice(%bias) {dim = 0, start = 0, stop = 4} -> !spec.tensor<[4], f32>
// CHECK: %product = spec.linear(%{{[0-9]+}}, [[ROWS]], [[BIAS]]) -> !spec.tensor<[M, 4], f32>
// CHECK: %logits = spec.map(%product) {function = "tanh"} -> !spec.tensor<[M, 4], f32>
// CHECK: spec.topk(%logits) {k = 3

// -----

// Numbers that differ between tokens would have to be cut as well: all keep their logits.

spec.func @step(%x: !spec.tensor<[N, 8], f32>, %head: !spec.tensor<[16, 8], f32>, %more: !spec.tensor<[1, 16], f32>) {
  %product = spec.linear(%x, %head) -> !spec.tensor<[N, 16], f32>
  %logits = spec.map(%product, %more) {function = "add"} -> !spec.tensor<[N, 16], f32>
  spec.return(%logits)
}
// CHECK: // select-outputs: all 16 tokens have logits, as no product ends in them
// CHECK: spec.linear(%{{[0-9]+}}, %head) -> !spec.tensor<[M, 16], f32>

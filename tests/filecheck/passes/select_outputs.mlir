// RUN: forerun-opt %s --split-input-file -p select-outputs{candidates=3} | filecheck %s

// The rows are picked in front of the norm and the head, not behind them.

spec.func @step(%x: !spec.tensor<[N, 8], f32>, %w: !spec.tensor<[8], f32>, %head: !spec.tensor<[16, 8], f32>) {
  %normed = spec.rms_norm(%x, %w) {eps = 1.0e-05} -> !spec.tensor<[N, 8], f32>
  %logits = spec.linear(%normed, %head) -> !spec.tensor<[N, 16], f32>
  spec.return(%logits)
}
// CHECK: spec.func @step(%x: !spec.tensor<[N, 8], f32>, %w: !spec.tensor<[8], f32>, %head: !spec.tensor<[16, 8], f32>, %outputs: !spec.tensor<[M], i32>) {
// CHECK-NEXT: [[S0:%[0-9]+]] = spec.gather(%x, %outputs) -> !spec.tensor<[M, 8], f32>
// CHECK-NEXT: %normed = spec.rms_norm([[S0]], %w) {eps = 1.0e-05} -> !spec.tensor<[M, 8], f32>
// CHECK-NEXT: %logits = spec.linear(%normed, %head) -> !spec.tensor<[M, 16], f32>
// CHECK-NEXT: [[S1:%[0-9]+]], [[S2:%[0-9]+]] = spec.topk(%logits) {k = 3, index_dtype = "i32"} -> !spec.tensor<[M, 3], f32>, !spec.tensor<[M, 3], i32>
// CHECK-NEXT: spec.return(%logits, [[S2]], [[S1]])
// CHECK-NEXT: }

// -----

// A value that others need for every row stops the walk up; candidates are at most the vocabulary.

spec.state @attention.0.keys {per = "position", shape = [1, 2], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 2], dtype = "f32"}
spec.func @step(%x: !spec.tensor<[N, 2], f32>, %slots: !spec.tensor<[N], i32>, %head: !spec.tensor<[2, 2], f32>) {
  %wave = spec.map(%x) {function = "sin"} -> !spec.tensor<[N, 2], f32>
  %key = spec.reshape(%wave) {shape = ["N", 1, 2]} -> !spec.tensor<[N, 1, 2], f32>
  spec.state_write @attention.0.keys(%key, %slots)
  spec.state_write @attention.0.values(%key, %slots)
  %logits = spec.linear(%wave, %head) -> !spec.tensor<[N, 2], f32>
  spec.return(%logits)
}
// CHECK: spec.state @attention.0.keys {per = "position", shape = [1, 2], dtype = "f32"}
// CHECK: spec.state @attention.0.values {per = "position", shape = [1, 2], dtype = "f32"}
// CHECK-NEXT: spec.func @step(%x: !spec.tensor<[N, 2], f32>, %slots: !spec.tensor<[N], i32>, %head: !spec.tensor<[2, 2], f32>, %outputs: !spec.tensor<[M], i32>) {
// CHECK-NEXT: %wave = spec.map(%x) {function = "sin"} -> !spec.tensor<[N, 2], f32>
// CHECK-NEXT: %key = spec.reshape(%wave) {shape = ["N", 1, 2]} -> !spec.tensor<[N, 1, 2], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys(%key, %slots)
// CHECK-NEXT: spec.state_write @attention.0.values(%key, %slots)
// CHECK-NEXT: [[S0:%[0-9]+]] = spec.gather(%wave, %outputs) -> !spec.tensor<[M, 2], f32>
// CHECK-NEXT: %logits = spec.linear([[S0]], %head) -> !spec.tensor<[M, 2], f32>
// CHECK-NEXT: [[S1:%[0-9]+]], [[S2:%[0-9]+]] = spec.topk(%logits) {k = 2, index_dtype = "i32"} -> !spec.tensor<[M, 2], f32>, !spec.tensor<[M, 2], i32>
// CHECK-NEXT: spec.return(%logits, [[S2]], [[S1]])
// CHECK-NEXT: }

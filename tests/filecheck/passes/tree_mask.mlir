// RUN: forerun-opt %s -p tree-mask | filecheck %s

// The step learns where a row's history ends and its path begins.

spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
  %number = spec.cast(%tokens) {dtype = "f32"} -> !spec.tensor<[N], f32>
  %column = spec.reshape(%number) {shape = ["N", 1, 1]} -> !spec.tensor<[N, 1, 1], f32>
  %x = spec.broadcast(%column) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.0.keys(%x, %slots)
  spec.state_write @attention.0.values(%x, %slots)
  %one = spec.constant() {value = 1, dtype = "i32"} -> !spec.tensor<[], i32>
  %bases = spec.map(%positions, %one) {function = "add"} -> !spec.tensor<[N], i32>
  %zero = spec.constant() {value = 0, dtype = "i32"} -> !spec.tensor<[], i32>
  %nothing = spec.broadcast(%zero) {shape = ["N", 0]} -> !spec.tensor<[N, 0], i32>
  %y = spec.tree_attention @attention.0.keys(%x, %positions, %sequences, %bases, %nothing, %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
  %flat = spec.reshape(%y) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
  spec.return(%flat)
}
// CHECK: spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK: spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK-NEXT: spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
// CHECK-NEXT: %number = spec.cast(%tokens) {dtype = "f32"} -> !spec.tensor<[N], f32>
// CHECK-NEXT: %column = spec.reshape(%number) {shape = ["N", 1, 1]} -> !spec.tensor<[N, 1, 1], f32>
// CHECK-NEXT: %x = spec.broadcast(%column) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys(%x, %slots)
// CHECK-NEXT: spec.state_write @attention.0.values(%x, %slots)
// CHECK-NEXT: %y = spec.tree_attention @attention.0.keys(%x, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: %flat = spec.reshape(%y) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: spec.return(%flat)
// CHECK-NEXT: }

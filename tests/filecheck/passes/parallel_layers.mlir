// RUN: forerun-opt %s -p parallel-layers{layers=2} | filecheck %s
// RUN: forerun-opt %s -p parallel-layers{layers=1} | filecheck %s --check-prefix ALONE
// RUN: not forerun-opt %s -p skip-layers{branches=1},parallel-layers 2>&1 | filecheck %s --check-prefix TWICE
// RUN: not forerun-opt %s -p parallel-layers{layers=0} 2>&1 | filecheck %s --check-prefix NONE

// The second layer's attention reads %x0, as the first one's does, and adds to %x2; both feed-forward parts read the
// stream as it then is. Weights and states are shared.

spec.weight @embedding {shape = [8, 4], dtype = "f32"}
spec.weight @w0 {shape = [4, 4], dtype = "f32"}
spec.weight @u0 {shape = [4, 4], dtype = "f32"}
spec.weight @w1 {shape = [4, 4], dtype = "f32"}
spec.weight @u1 {shape = [4, 4], dtype = "f32"}
spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.1.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.1.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
  %table = spec.parameter @embedding() {shape = [8, 4], dtype = "f32"} -> !spec.tensor<[8, 4], f32>
  %x0 = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
  %w0 = spec.parameter @w0() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %q0 = spec.linear(%x0, %w0) -> !spec.tensor<[N, 4], f32>
  %k0 = spec.reshape(%q0) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.0.keys(%k0, %slots)
  spec.state_write @attention.0.values(%k0, %slots)
  %y0 = spec.tree_attention @attention.0.keys(%k0, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
  %a0 = spec.reshape(%y0) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
  %x1 = spec.map(%x0, %a0) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %u0 = spec.parameter @u0() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %f0 = spec.linear(%x1, %u0) -> !spec.tensor<[N, 4], f32>
  %x2 = spec.map(%x1, %f0) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %w1 = spec.parameter @w1() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %q1 = spec.linear(%x2, %w1) -> !spec.tensor<[N, 4], f32>
  %k1 = spec.reshape(%q1) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.1.keys(%k1, %slots)
  spec.state_write @attention.1.values(%k1, %slots)
  %y1 = spec.tree_attention @attention.1.keys(%k1, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.1.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
  %a1 = spec.reshape(%y1) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
  %x3 = spec.map(%x2, %a1) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %u1 = spec.parameter @u1() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %f1 = spec.linear(%x3, %u1) -> !spec.tensor<[N, 4], f32>
  %x4 = spec.map(%x3, %f1) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %logits = spec.linear(%x4, %table) -> !spec.tensor<[N, 8], f32>
  spec.return(%logits)
}
// CHECK: spec.func @draft(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
// CHECK-NEXT: %table = spec.parameter @embedding() {shape = [8, 4], dtype = "f32"} -> !spec.tensor<[8, 4], f32>
// CHECK-NEXT: %x0 = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %w0 = spec.parameter @w0() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %q0 = spec.linear(%x0, %w0) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %k0 = spec.reshape(%q0) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys(%k0, %slots)
// CHECK-NEXT: spec.state_write @attention.0.values(%k0, %slots)
// CHECK-NEXT: %y0 = spec.tree_attention @attention.0.keys(%k0, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: %a0 = spec.reshape(%y0) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %x1 = spec.map(%x0, %a0) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %u0 = spec.parameter @u0() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %f0 = spec.linear(%x1, %u0) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %x2 = spec.map(%x1, %f0) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %w1 = spec.parameter @w1() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %q1 = spec.linear(%x0, %w1) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %k1 = spec.reshape(%q1) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.state_write @attention.1.keys(%k1, %slots)
// CHECK-NEXT: spec.state_write @attention.1.values(%k1, %slots)
// CHECK-NEXT: %y1 = spec.tree_attention @attention.1.keys(%k1, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.1.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: %a1 = spec.reshape(%y1) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %x3 = spec.map(%x2, %a1) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %u1 = spec.parameter @u1() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %f1 = spec.linear(%x3, %u1) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %x4 = spec.map(%x3, %f1) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %logits = spec.linear(%x4, %table) -> !spec.tensor<[N, 8], f32>
// CHECK-NEXT: spec.return(%logits)
// CHECK-NEXT: }
// ALONE: spec.func @draft
// ALONE: %q1 = spec.linear(%x2, %w1)
// TWICE: The module has a @draft already; run parallel-layers on one without.
// NONE: parallel-layers needs layers to be from 1 to 1048576, not 0.

// RUN: forerun-opt %s --split-input-file -p canonicalize,raise-grouped-queries,canonicalize | filecheck %s

// Two query heads share one of two key heads: the repetition goes.

spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>) {
  %apart = spec.reshape(%k) {shape = [1, 2, 1, "T", 8]} -> !spec.tensor<[1, 2, 1, T, 8], f32>
  %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
  %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
  %y = spec.attention(%q, %repeated, %repeated) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>) {
// CHECK-NEXT: %y = spec.attention(%q, %k, %k) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: heads tiled as a whole ([k0 k1 k0 k1]) are another pairing than heads repeated ([k0 k0 k1 k1]).

spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>) {
  %apart = spec.reshape(%k) {shape = [1, 1, 2, "T", 8]} -> !spec.tensor<[1, 1, 2, T, 8], f32>
  %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
  %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
  %y = spec.attention(%q, %repeated, %repeated) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>) {
// CHECK-NEXT: %apart = spec.reshape(%k) {shape = [1, 1, 2, "T", 8]} -> !spec.tensor<[1, 1, 2, T, 8], f32>
// CHECK-NEXT: %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
// CHECK-NEXT: %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
// CHECK-NEXT: %y = spec.attention(%q, %repeated, %repeated) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: only the keys are repeated.

spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>, %v: !spec.tensor<[1, 4, T, 8], f32>) {
  %apart = spec.reshape(%k) {shape = [1, 2, 1, "T", 8]} -> !spec.tensor<[1, 2, 1, T, 8], f32>
  %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
  %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
  %y = spec.attention(%q, %repeated, %v) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[1, 4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>, %v: !spec.tensor<[1, 4, T, 8], f32>) {
// CHECK-NEXT: %apart = spec.reshape(%k) {shape = [1, 2, 1, "T", 8]} -> !spec.tensor<[1, 2, 1, T, 8], f32>
// CHECK-NEXT: %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
// CHECK-NEXT: %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
// CHECK-NEXT: %y = spec.attention(%q, %repeated, %v) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// A repetition is found behind several views, which raise-attention adds and canonicalize merges.

spec.func @forward(%q: !spec.tensor<[4, T, 8], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>) {
  %apart = spec.reshape(%k) {shape = [1, 2, 1, "T", 8]} -> !spec.tensor<[1, 2, 1, T, 8], f32>
  %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
  %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
  %heads = spec.reshape(%repeated) {shape = [4, "T", 8]} -> !spec.tensor<[4, T, 8], f32>
  %y = spec.attention(%q, %heads, %heads) {scale = 0.5, causal = true} -> !spec.tensor<[4, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.reshape(%k) {shape = [2, "T", 8]} -> !spec.tensor<[2, T, 8], f32>
// CHECK-NEXT: %y = spec.attention(%q, [[F0]], [[F0]]) {scale = 0.5, causal = true} -> !spec.tensor<[4, T, 8], f32>
// CHECK-NEXT: spec.return(%y)

// -----

// Keys that join two repeated values are those of the joined values; one that all heads share is that of each key head.

spec.func @forward(%q: !spec.tensor<[1, 4, T, 9], f32>, %k: !spec.tensor<[1, 2, T, 8], f32>, %one: !spec.tensor<[1, 1, T, 1], f32>) {
  %apart = spec.reshape(%k) {shape = [1, 2, 1, "T", 8]} -> !spec.tensor<[1, 2, 1, T, 8], f32>
  %wide = spec.broadcast(%apart) {shape = [1, 2, 2, "T", 8]} -> !spec.tensor<[1, 2, 2, T, 8], f32>
  %repeated = spec.reshape(%wide) {shape = [1, 4, "T", 8]} -> !spec.tensor<[1, 4, T, 8], f32>
  %shared = spec.broadcast(%one) {shape = [1, 4, "T", 1]} -> !spec.tensor<[1, 4, T, 1], f32>
  %joined = spec.concat(%repeated, %shared) {dim = 3} -> !spec.tensor<[1, 4, T, 9], f32>
  %y = spec.attention(%q, %joined, %repeated) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>
  spec.return(%y)
}
// CHECK: [[SHARED:%[0-9]+]] = spec.broadcast(%one) {shape = [1, 2, "T", 1]} -> !spec.tensor<[1, 2, T, 1], f32>
// CHECK-NEXT: [[KEYS:%[0-9]+]] = spec.concat(%k, [[SHARED]]) {dim = 3} -> !spec.tensor<[1, 2, T, 9], f32>
// CHECK-NEXT: %y = spec.attention(%q, [[KEYS]], %k) {scale = 0.5, causal = true} -> !spec.tensor<[1, 4, T, 8], f32>

// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// CHECK: spec.parameter reads the weight @missing, which the module does not declare:
// CHECK-NEXT: > %w = spec.parameter @missing()

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %w = spec.parameter @missing() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  spec.return(%w)
}

// -----

// CHECK: spec.parameter reads @w as !spec.tensor<[8], f32>, not the declared !spec.tensor<[9], f32>:

spec.weight @w {shape = [9], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %w = spec.parameter @w() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  spec.return(%w)
}

// -----

// CHECK: spec.state_write uses the state @attention.0.keys, which the module does not declare:
// CHECK-NEXT: > spec.state_write @attention.0.keys(%k, %slots)

spec.func @step(%k: !spec.tensor<[N, 1, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  spec.state_write @attention.0.keys(%k, %slots)
  spec.return(%k)
}

// -----

// CHECK: the symbol @w is defined twice; rename one.

spec.weight @w {shape = [9], dtype = "f32"}
spec.state @w {per = "position", shape = [1, 4], dtype = "f32"}

// -----

// CHECK: weight @derived.0 is not a result of @constants of type !spec.tensor<[8], f32>; derive it there.

spec.weight @derived.0 {shape = [8], dtype = "f32", derived = 0}

// -----

// CHECK: weight @derived.0 is not a result of @constants of type !spec.tensor<[8], f32>; derive it there.

spec.weight @derived.0 {shape = [8], dtype = "f32", derived = 0}
spec.func @constants() {
  %range = spec.iota() {size = 8} -> !spec.tensor<[8], i64>
  spec.return(%range)
}

// -----

// CHECK: spec.iota cannot stand at the top of a module; put it into a spec.func.

%range = spec.iota() {size = 8} -> !spec.tensor<[8], i64>

// -----

// CHECK: weight @w is stored as f12, an unknown weight dtype; use one of bf16

spec.weight @w {shape = [8, 8], dtype = "f32", storage = "f12"}

// -----

// CHECK: weight @w is stored as bf16, but only float32 matrices can be.

spec.weight @w {shape = [8], dtype = "f32", storage = "bf16"}

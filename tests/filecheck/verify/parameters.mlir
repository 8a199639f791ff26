// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// A parameter that an operation does not have, or of another kind.

// CHECK: spec.softmax has no parameter 'axis', only dim:
// CHECK-NEXT: > %y = spec.softmax(%x) {dim = 1, axis = 1}

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.softmax(%x) {dim = 1, axis = 1} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.softmax has no parameter 'axis', only dim:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = "spec.softmax"(%x) <{dim = 1 : i64}> {axis = 1 : i64} : (!spec.tensor<[1, T], f32>) -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.softmax takes an integer as the parameter 'dim', not 1.0:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.softmax(%x) {dim = 1.0} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.weight takes a string as the parameter 'storage', not 16:

spec.weight @w {shape = [8, 8], dtype = "f32", storage = 16}

// -----

// CHECK: @step takes an integer as the parameter 'arena', not "large".

spec.func @step(%x: !spec.tensor<[N], f32>) attributes {arena = "large"} {
  spec.return(%x)
}

// -----

// CHECK: spec.linear does not take the operands (!spec.tensor<[1, T], f32>), but (x, weight, bias?):

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.linear(%x) -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.layer_norm operand count (3) does not match with the total size (2)

spec.func @forward(%x: !spec.tensor<[T, 8], f32>, %w: !spec.tensor<[8], f32>) {
  %y = "spec.layer_norm"(%x, %w, %w) <{eps = 1.0e-05 : f64, operandSegmentSizes = array<i32: 1, 1, 0>}> : (!spec.tensor<[T, 8], f32>, !spec.tensor<[8], f32>, !spec.tensor<[8], f32>) -> !spec.tensor<[T, 8], f32>
  spec.return(%y)
}

// -----

// Optional operands are listed by name.

// CHECK: spec.attention has no extra operand 'drains', only mask, first, bias, sinks

spec.func @forward(%x: !spec.tensor<[2, T, 4], f32>, %s: !spec.tensor<[2], f32>) {
  %y = spec.attention(%x, %x, %x, %s) {scale = 0.5, extra = ["drains"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.attention lists the extra operands [], but 1 are given

spec.func @forward(%x: !spec.tensor<[2, T, 4], f32>, %s: !spec.tensor<[2], f32>) {
  %y = spec.attention(%x, %x, %x, %s) {scale = 0.5} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}

// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// CHECK: @forward does not end in spec.return; add one.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
}

// -----

// CHECK: spec.kernel does not end in spec.yield:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    %out = spec.map(%in) {function = "exp"} -> !spec.tensor<[N], f32>
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel has operands that do not fit its body's arguments:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], bf16>):
    spec.yield(%in)
  } -> !spec.tensor<[N], bf16>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel has results of other types than it yields:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], bf16>
  spec.return(%y)
}

// -----

// A kernel reads its operands and nothing else.

// CHECK: spec.map uses a value before its definition, or one of another function:
// CHECK-NEXT: > %out = spec.map(%x)

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    %out = spec.map(%x) {function = "exp"} -> !spec.tensor<[N], f32>
    spec.yield(%out)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

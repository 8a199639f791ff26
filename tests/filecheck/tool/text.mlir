// RUN: not forerun-opt %s --split-input-file --no-verify 2>&1 | filecheck %s

// What does not parse is refused with its line.

// CHECK: is not IR of the spec dialect: {{.*}}text.mlir:11:
// CHECK: Operation spec.unknown is not registered
// CHECK: text.mlir:18:
// CHECK: is not an element type of a spec.tensor

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.unknown(%x) -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// The parser's line numbers are those of the file.
spec.func @forward(%x: !spec.tensor<[1, T], index>) {
  spec.return(%x)
}

// -----

// Without verification, broken IR can be looked at.

// CHECK: spec.return(%x, %later)

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  "spec.return"(%x, %later) : (!spec.tensor<[1, T], f32>, !spec.tensor<[1, T], f32>) -> ()
  %later = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
}

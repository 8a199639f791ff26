// RUN: not forerun-opt %s --split-input-file --no-verify 2>&1 | filecheck %s

// What does not parse is refused with its line.

// CHECK: is not IR of the spec dialect: {{.*}}text.mlir:15:
// CHECK: Operation spec.unknown is not registered
// CHECK: text.mlir:22:
// CHECK: is not an element type of a spec.tensor
// CHECK: 0*T is not a size of a dimension; use a multiple of T above 0
// CHECK: -1*T is not a size of a dimension; use a multiple of T above 0, plus or minus a number
// CHECK: T+9999999999999999999 is not a size of a dimension
// CHECK: identifier expected as the name of a dimension

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

spec.func @forward(%x: !spec.tensor<[1, 0*T], f32>) {
  spec.return(%x)
}

// -----

spec.func @forward(%x: !spec.tensor<[1, -1*T], f32>) {
  spec.return(%x)
}

// -----

spec.func @forward(%x: !spec.tensor<[1, T+9999999999999999999], f32>) {
  spec.return(%x)
}

// -----

spec.func @forward(%x: !spec.tensor<[1, "T"], f32>) {
  spec.return(%x)
}

// -----

// Without verification, broken IR can be looked at.

// CHECK: spec.return(%x, %later)

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  "spec.return"(%x, %later) : (!spec.tensor<[1, T], f32>, !spec.tensor<[1, T], f32>) -> ()
  %later = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
}

// RUN: forerun-opt %s --split-input-file -p raise-softmax,canonicalize | filecheck %s

// The softmax becomes one operation.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
  %largest = spec.reduce(%x) {function = "max", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %shifted = spec.map(%x, %largest) {function = "sub"} -> !spec.tensor<[1, T, 8], f32>
  %exp = spec.map(%shifted) {function = "exp"} -> !spec.tensor<[1, T, 8], f32>
  %sum = spec.reduce(%exp) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %y = spec.map(%exp, %sum) {function = "div"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
// CHECK-NEXT: %y = spec.softmax(%x) {dim = 2} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: the sum is along another dimension than the maximum.

spec.func @forward(%x: !spec.tensor<[1, 8, 8], f32>) {
  %largest = spec.reduce(%x) {function = "max", dims = [2], keep = true} -> !spec.tensor<[1, 8, 1], f32>
  %shifted = spec.map(%x, %largest) {function = "sub"} -> !spec.tensor<[1, 8, 8], f32>
  %exp = spec.map(%shifted) {function = "exp"} -> !spec.tensor<[1, 8, 8], f32>
  %sum = spec.reduce(%exp) {function = "sum", dims = [1], keep = true} -> !spec.tensor<[1, 1, 8], f32>
  %y = spec.map(%exp, %sum) {function = "div"} -> !spec.tensor<[1, 8, 8], f32>
  spec.return(%y)
}
// CHECK: // raise-softmax: exponentials are summed, but are not exp(x - max(x)) over that sum
// CHECK: %y = spec.map(%exp, %sum) {function = "div"} -> !spec.tensor<[1, 8, 8], f32>

// -----

// Declines: what is subtracted is the maximum of another value.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %z: !spec.tensor<[1, T, 8], f32>) {
  %largest = spec.reduce(%z) {function = "max", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %shifted = spec.map(%x, %largest) {function = "sub"} -> !spec.tensor<[1, T, 8], f32>
  %exp = spec.map(%shifted) {function = "exp"} -> !spec.tensor<[1, T, 8], f32>
  %sum = spec.reduce(%exp) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %y = spec.map(%exp, %sum) {function = "div"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: // raise-softmax: exponentials are summed, but are not exp(x - max(x)) over that sum
// CHECK: %y = spec.map(%exp, %sum) {function = "div"} -> !spec.tensor<[1, T, 8], f32>

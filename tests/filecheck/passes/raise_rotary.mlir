// RUN: forerun-opt %s --split-input-file -p raise-rotary,canonicalize | filecheck %s

// The half style.

spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
  %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %left = spec.slice(%x) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %right = spec.slice(%x) {dim = 3, start = 2, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %negated = spec.map(%right) {function = "neg"} -> !spec.tensor<[1, 2, T, 2], f32>
  %half = spec.concat(%negated, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
  %turned = spec.map(%sin, %half) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%turned, %straight) {function = "add"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
// CHECK-NEXT: %y = spec.rotary(%x, %cos, %sin) -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: the halves are not negated, so this is no rotation.

spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
  %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %left = spec.slice(%x) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %right = spec.slice(%x) {dim = 3, start = 2, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %half = spec.concat(%right, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
  %turned = spec.map(%half, %sin) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%straight, %turned) {function = "add"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
// CHECK-NEXT: %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %left = spec.slice(%x) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
// CHECK-NEXT: %right = spec.slice(%x) {dim = 3, start = 2, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
// CHECK-NEXT: %half = spec.concat(%right, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %turned = spec.map(%half, %sin) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %y = spec.map(%straight, %turned) {function = "add"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: the parts are not halves.

spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
  %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %left = spec.slice(%x) {dim = 3, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 2, T, 1], f32>
  %right = spec.slice(%x) {dim = 3, start = 1, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 3], f32>
  %negated = spec.map(%right) {function = "neg"} -> !spec.tensor<[1, 2, T, 3], f32>
  %half = spec.concat(%negated, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
  %turned = spec.map(%half, %sin) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%straight, %turned) {function = "add"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
// CHECK-NEXT: %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %left = spec.slice(%x) {dim = 3, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 2, T, 1], f32>
// CHECK-NEXT: %right = spec.slice(%x) {dim = 3, start = 1, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 3], f32>
// CHECK-NEXT: %negated = spec.map(%right) {function = "neg"} -> !spec.tensor<[1, 2, T, 3], f32>
// CHECK-NEXT: %half = spec.concat(%negated, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %turned = spec.map(%half, %sin) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %y = spec.map(%straight, %turned) {function = "add"} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines, and says so: the halves are turned, and subtracted.

spec.func @forward(%x: !spec.tensor<[1, 2, T, 4], f32>, %cos: !spec.tensor<[1, 1, T, 4], f32>, %sin: !spec.tensor<[1, 1, T, 4], f32>) {
  %straight = spec.map(%x, %cos) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %left = spec.slice(%x) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %right = spec.slice(%x) {dim = 3, start = 2, stop = 4, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
  %negated = spec.map(%right) {function = "neg"} -> !spec.tensor<[1, 2, T, 2], f32>
  %half = spec.concat(%negated, %left) {dim = 3} -> !spec.tensor<[1, 2, T, 4], f32>
  %turned = spec.map(%sin, %half) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%straight, %turned) {function = "sub"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: // raise-rotary: halves are turned, but not in x * cos + turned * sin with tables as wide as x
// CHECK: %y = spec.map(%straight, %turned) {function = "sub"} -> !spec.tensor<[1, 2, T, 4], f32>

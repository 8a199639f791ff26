// RUN: forerun-opt %s --split-input-file -p raise-norms,canonicalize | filecheck %s

// The norm and its weight become one operation, in either order of the operands.

spec.weight @w {shape = [8], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
  %w = spec.parameter @w() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
  %normed = spec.map(%x, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %y = spec.map(%w, %normed) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.weight @w {shape = [8], dtype = "f32"}
// CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
// CHECK-NEXT: %w = spec.parameter @w() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
// CHECK-NEXT: %y = spec.rms_norm(%x, %w) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// x / sqrt(...), and eps on the left.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
  %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%eps, %mean) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %root = spec.map(%shifted) {function = "sqrt"} -> !spec.tensor<[1, T, 1], f32>
  %y = spec.map(%x, %root) {function = "div"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
// CHECK-NEXT: %y = spec.rms_norm(%x) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: the mean is over another dimension than the last.

spec.func @forward(%x: !spec.tensor<[1, T, 8, 4], f32>) {
  %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8, 4], f32>
  %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1, 4], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1, 4], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1, 4], f32>
  %y = spec.map(%x, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8, 4], f32>
  spec.return(%y)
}
// CHECK: // raise-norms: a number is divided by a root that is not of a mean of squares over the last dimension plus a number
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8, 4], f32>) {
// CHECK-NEXT: %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8, 4], f32>
// CHECK-NEXT: %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1, 4], f32>
// CHECK-NEXT: %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1, 4], f32>
// CHECK-NEXT: %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1, 4], f32>
// CHECK-NEXT: %y = spec.map(%x, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: what is normalised is not what was squared.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %z: !spec.tensor<[1, T, 8], f32>) {
  %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
  %y = spec.map(%z, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: // raise-norms: a number is divided by a root that is not of a mean of squares over the last dimension plus a number
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %z: !spec.tensor<[1, T, 8], f32>) {
// CHECK-NEXT: %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %y = spec.map(%z, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// The weight stays outside where the normed value is used twice.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>) {
  %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %mean = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%mean, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
  %normed = spec.map(%x, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %y = spec.map(%normed, %w) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y, %normed)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>) {
// CHECK-NEXT: %normed = spec.rms_norm(%x) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: %y = spec.map(%normed, %w) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y, %normed)
// CHECK-NEXT: }

// -----

// The RMS norm of what is left when the mean is subtracted is a layer norm, with its weight and its bias.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>, %b: !spec.tensor<[8], f32>) {
  %mean = spec.reduce(%x) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %centred = spec.map(%x, %mean) {function = "sub"} -> !spec.tensor<[1, T, 8], f32>
  %square = spec.map(%centred, %centred) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %var = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%var, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
  %normed = spec.map(%centred, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %weighted = spec.map(%normed, %w) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %y = spec.map(%weighted, %b) {function = "add"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>, %b: !spec.tensor<[8], f32>) {
// CHECK-NEXT: %y = spec.layer_norm(%x, %w, %b) {eps = 1.0e-05
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: what is subtracted is the mean of another value.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %z: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>) {
  %mean = spec.reduce(%z) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %centred = spec.map(%x, %mean) {function = "sub"} -> !spec.tensor<[1, T, 8], f32>
  %y = spec.rms_norm(%centred, %w) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: %y = spec.rms_norm(%centred, %w) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>

// -----

// A variance computed in f64, as decompositions do.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>) {
  %wide = spec.cast(%x) {dtype = "f64"} -> !spec.tensor<[1, T, 8], f64>
  %middle = spec.reduce(%wide) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f64>
  %difference = spec.map(%wide, %middle) {function = "sub"} -> !spec.tensor<[1, T, 8], f64>
  %square = spec.map(%difference, %difference) {function = "mul"} -> !spec.tensor<[1, T, 8], f64>
  %exact = spec.reduce(%square) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f64>
  %var = spec.cast(%exact) {dtype = "f32"} -> !spec.tensor<[1, T, 1], f32>
  %mean = spec.reduce(%x) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %eps = spec.constant() {value = 1.0e-05, dtype = "f32"} -> !spec.tensor<[], f32>
  %shifted = spec.map(%var, %eps) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %inverse = spec.map(%shifted) {function = "rsqrt"} -> !spec.tensor<[1, T, 1], f32>
  %centred = spec.map(%x, %mean) {function = "sub"} -> !spec.tensor<[1, T, 8], f32>
  %normed = spec.map(%centred, %inverse) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  %y = spec.map(%normed, %w) {function = "mul"} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8], f32>) {
// CHECK-NEXT: %y = spec.layer_norm(%x, %w) {eps = 1.0e-05} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)

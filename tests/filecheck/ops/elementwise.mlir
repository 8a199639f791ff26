// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | filecheck %s --check-prefix GENERIC

// Elementwise functions, casts, constants.

builtin.module {
// CHECK: builtin.module {
  spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %y: !spec.tensor<[8], f32>, %i: !spec.tensor<[1, T], i64>) {
  // CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %y: !spec.tensor<[8], f32>, %i: !spec.tensor<[1, T], i64>) {
    %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
    // CHECK-NEXT: %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
    %three = spec.constant() {value = -3, dtype = "i64"} -> !spec.tensor<[], i64>
    // CHECK-NEXT: %three = spec.constant() {value = -3, dtype = "i64"} -> !spec.tensor<[], i64>
    %yes = spec.constant() {value = true, dtype = "i1"} -> !spec.tensor<[], i1>
    // CHECK-NEXT: %yes = spec.constant() {value = true, dtype = "i1"} -> !spec.tensor<[], i1>
    %range = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
    // CHECK-NEXT: %range = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
    %fixed = spec.iota() {size = 7} -> !spec.tensor<[7], i64>
    // CHECK-NEXT: %fixed = spec.iota() {size = 7} -> !spec.tensor<[7], i64>
    %sum = spec.map(%x, %y) {function = "add"} -> !spec.tensor<[1, T, 8], f32>
    // CHECK-NEXT: %sum = spec.map(%x, %y) {function = "add"} -> !spec.tensor<[1, T, 8], f32>
    %root = spec.map(%sum) {function = "rsqrt"} -> !spec.tensor<[1, T, 8], f32>
    // CHECK-NEXT: %root = spec.map(%sum) {function = "rsqrt"} -> !spec.tensor<[1, T, 8], f32>
    %less = spec.map(%x, %one) {function = "lt"} -> !spec.tensor<[1, T, 8], i1>
    // CHECK-NEXT: %less = spec.map(%x, %one) {function = "lt"} -> !spec.tensor<[1, T, 8], i1>
    %chosen = spec.map(%less, %x, %root) {function = "where"} -> !spec.tensor<[1, T, 8], f32>
    // CHECK-NEXT: %chosen = spec.map(%less, %x, %root) {function = "where"} -> !spec.tensor<[1, T, 8], f32>
    %half = spec.cast(%chosen) {dtype = "bf16"} -> !spec.tensor<[1, T, 8], bf16>
    // CHECK-NEXT: %half = spec.cast(%chosen) {dtype = "bf16"} -> !spec.tensor<[1, T, 8], bf16>
    %short = spec.cast(%i) {dtype = "i32"} -> !spec.tensor<[1, T], i32>
    // CHECK-NEXT: %short = spec.cast(%i) {dtype = "i32"} -> !spec.tensor<[1, T], i32>
    spec.return(%half, %short)
    // CHECK-NEXT: spec.return(%half, %short)
  }
  // CHECK-NEXT: }
}
// CHECK-NEXT: }
// GENERIC: "spec.constant"() <{value = 1.000000e+00 : f64, dtype = "f32"}> : () -> !spec.tensor<[], f32>
// GENERIC: "spec.map"(%x, %y) <{function = "add"}> : (!spec.tensor<[1, T, 8], f32>, !spec.tensor<[8], f32>) -> !spec.tensor<[1, T, 8], f32>

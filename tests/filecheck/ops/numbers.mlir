// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | filecheck %s --check-prefix GENERIC

// Numbers come back bit for bit: the shortest text that does so, hexadecimal where there is none.

builtin.module {
// CHECK: builtin.module {
  spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  // CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
// 1 / sqrt(48)
    %scale = spec.constant() {value = 0.14433756729740646, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %scale = spec.constant() {value = 0.14433756729740646, dtype = "f64"} -> !spec.tensor<[], f64>
    %eps = spec.constant() {value = 1.0e-06, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %eps = spec.constant() {value = 1.0e-06, dtype = "f64"} -> !spec.tensor<[], f64>
    %large = spec.constant() {value = 123456789.0, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %large = spec.constant() {value = 123456789.0, dtype = "f64"} -> !spec.tensor<[], f64>
    %huge = spec.constant() {value = 1.7976931348623157e+308, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %huge = spec.constant() {value = 1.7976931348623157e+308, dtype = "f64"} -> !spec.tensor<[], f64>
    %tiny = spec.constant() {value = 5.0e-324, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %tiny = spec.constant() {value = 5.0e-324, dtype = "f64"} -> !spec.tensor<[], f64>
    %minus_zero = spec.constant() {value = -0.0, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %minus_zero = spec.constant() {value = -0.0, dtype = "f64"} -> !spec.tensor<[], f64>
    %hidden = spec.constant() {value = 0xfff0000000000000 : f64, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %hidden = spec.constant() {value = 0xfff0000000000000 : f64, dtype = "f64"} -> !spec.tensor<[], f64>
    %nothing = spec.constant() {value = 0x7ff8000000000000 : f64, dtype = "f64"} -> !spec.tensor<[], f64>
    // CHECK-NEXT: %nothing = spec.constant() {value = 0x7ff8000000000000 : f64, dtype = "f64"} -> !spec.tensor<[], f64>
    %least = spec.constant() {value = -9223372036854775808, dtype = "i64"} -> !spec.tensor<[], i64>
    // CHECK-NEXT: %least = spec.constant() {value = -9223372036854775808, dtype = "i64"} -> !spec.tensor<[], i64>
    spec.return(%x)
    // CHECK-NEXT: spec.return(%x)
  }
  // CHECK-NEXT: }
}
// CHECK-NEXT: }
// GENERIC: value = 0.14433756729740646 : f64
// GENERIC: value = 0x419D6F3454000000 : f64

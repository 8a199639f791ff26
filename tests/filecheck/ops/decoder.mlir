// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | filecheck %s --check-prefix GENERIC

// The decoder's own operations, weights, states and a kernel.

builtin.module {
// CHECK: builtin.module {
  spec.weight @model.norm.weight {shape = [8], dtype = "f32"}
  // CHECK-NEXT: spec.weight @model.norm.weight {shape = [8], dtype = "f32"}
  spec.weight @derived.0 {shape = [32], dtype = "i64", derived = 0}
  // CHECK-NEXT: spec.weight @derived.0 {shape = [32], dtype = "i64", derived = 0}
  spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
  spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
  // CHECK-NEXT: spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
  // CHECK-NEXT: spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
  spec.func @constants() {
  // CHECK-NEXT: spec.func @constants() {
    %positions = spec.iota() {size = 32} -> !spec.tensor<[32], i64>
    // CHECK-NEXT: %positions = spec.iota() {size = 32} -> !spec.tensor<[32], i64>
    spec.return(%positions)
    // CHECK-NEXT: spec.return(%positions)
  }
  // CHECK-NEXT: }
  spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[1, T, 4], f32>, %cos: !spec.tensor<[T, 4], f32>, %first: !spec.tensor<[T], i64>, %sinks: !spec.tensor<[2], f32>) {
  // CHECK-NEXT: spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[1, T, 4], f32>, %cos: !spec.tensor<[T, 4], f32>, %first: !spec.tensor<[T], i64>, %sinks: !spec.tensor<[2], f32>) {
    %turned = spec.rotary(%q, %cos, %cos) -> !spec.tensor<[2, T, 4], f32>
    // CHECK-NEXT: %turned = spec.rotary(%q, %cos, %cos) -> !spec.tensor<[2, T, 4], f32>
    %attended = spec.attention(%turned, %k, %k, %first, %sinks) {scale = 0.5, softcap = 30.0, causal = true, extra = ["first", "sinks"]} -> !spec.tensor<[2, T, 4], f32>
    // CHECK-NEXT: %attended = spec.attention(%turned, %k, %k, %first, %sinks) {scale = 0.5, softcap = 30.0, causal = true, extra = ["first", "sinks"]} -> !spec.tensor<[2, T, 4], f32>
    %centred = spec.layer_norm(%attended) {eps = 1.0e-05} -> !spec.tensor<[2, T, 4], f32>
    // CHECK-NEXT: %centred = spec.layer_norm(%attended) {eps = 1.0e-05} -> !spec.tensor<[2, T, 4], f32>
    spec.return(%centred)
    // CHECK-NEXT: spec.return(%centred)
  }
  // CHECK-NEXT: }
  spec.func @step(%q: !spec.tensor<[N, 2, 4], f32>, %k: !spec.tensor<[N, 1, 4], f32>, %rows: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %tables: !spec.tensor<[S, B], i32>) attributes {arena = 4096} {
  // CHECK-NEXT: spec.func @step(%q: !spec.tensor<[N, 2, 4], f32>, %k: !spec.tensor<[N, 1, 4], f32>, %rows: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %tables: !spec.tensor<[S, B], i32>) attributes {arena = 4096} {
    spec.state_write @attention.0.keys(%k, %rows)
    spec.state_write @attention.0.values(%k, %rows)
    // CHECK-NEXT: spec.state_write @attention.0.keys(%k, %rows)
    // CHECK-NEXT: spec.state_write @attention.0.values(%k, %rows)
    %attended = spec.tree_attention @attention.0.keys(%q, %rows, %rows, %rows, %paths, %tables) {values = @attention.0.values, block = 16, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 2, 4], f32>
    // CHECK-NEXT: %attended = spec.tree_attention @attention.0.keys(%q, %rows, %rows, %rows, %paths, %tables) {values = @attention.0.values, block = 16, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 2, 4], f32>
    %flat = spec.reshape(%attended) {shape = ["N", 8]} -> !spec.tensor<[N, 8], f32>
    // CHECK-NEXT: %flat = spec.reshape(%attended) {shape = ["N", 8]} -> !spec.tensor<[N, 8], f32>
    %weight = spec.parameter @model.norm.weight() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
    // CHECK-NEXT: %weight = spec.parameter @model.norm.weight() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
    %normed = spec.kernel(%flat, %weight) {kind = "row_wise", offsets = [64]} {
    // CHECK-NEXT: %normed = spec.kernel(%flat, %weight) {kind = "row_wise", offsets = [64]} {
    ^bb0(%flat_1: !spec.tensor<[N, 8], f32>, %weight_1: !spec.tensor<[8], f32>):
    // CHECK-NEXT: ^bb0(%flat_1: !spec.tensor<[N, 8], f32>, %weight_1: !spec.tensor<[8], f32>):
      %inner = spec.rms_norm(%flat_1, %weight_1) {eps = 1.0e-06} -> !spec.tensor<[N, 8], f32>
      // CHECK-NEXT: %inner = spec.rms_norm(%flat_1, %weight_1) {eps = 1.0e-06} -> !spec.tensor<[N, 8], f32>
      spec.yield(%inner)
      // CHECK-NEXT: spec.yield(%inner)
    } -> !spec.tensor<[N, 8], f32>
    // CHECK-NEXT: } -> !spec.tensor<[N, 8], f32>
    spec.return(%normed)
    // CHECK-NEXT: spec.return(%normed)
  }
  // CHECK-NEXT: }
}
// CHECK-NEXT: }
// GENERIC: "spec.weight"() <{symbol = @model.norm.weight, shape = [8 : i64], dtype = "f32"}> : () -> ()
// GENERIC: "spec.attention"(%turned, %k, %k, %first, %sinks) <{scale = 5.000000e-01 : f64, softcap = 3.000000e+01 : f64, causal = true, operandSegmentSizes = array<i32: 1, 1, 1, 0, 1, 0, 1>}> :
// GENERIC: "spec.state_write"(%k, %rows) <{symbol = @attention.0.keys}> : 
// GENERIC: "spec.kernel"(%flat, %weight) <{kind = "row_wise", offsets = [64 : i64]}> ({

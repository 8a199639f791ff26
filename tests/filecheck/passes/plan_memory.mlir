// RUN: forerun-opt %s -p plan-memory{max_rows=4} | filecheck %s

// Three buffers of 4 x 16 x 4 = 256 bytes: the first is free again when the third is written.

spec.func @step(%x: !spec.tensor<[N, 16], f32>) {
  %a = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N, 16], f32>):
    %out = spec.map(%in) {function = "exp"} -> !spec.tensor<[N, 16], f32>
    spec.yield(%out)
  } -> !spec.tensor<[N, 16], f32>
  %b = spec.kernel(%a) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N, 16], f32>):
    %out = spec.map(%in) {function = "sin"} -> !spec.tensor<[N, 16], f32>
    spec.yield(%out)
  } -> !spec.tensor<[N, 16], f32>
  %c = spec.kernel(%b) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N, 16], f32>):
    %out = spec.map(%in) {function = "cos"} -> !spec.tensor<[N, 16], f32>
    spec.yield(%out)
  } -> !spec.tensor<[N, 16], f32>
  spec.return(%c)
}
// CHECK: // plan-memory: 3 buffers, 768 bytes, in an arena of 512 bytes
// CHECK: spec.func @step(%x: !spec.tensor<[N, 16], f32>) attributes {arena = 512, max_rows = {{[0-9]+}}, max_outputs = {{[0-9]+}}} {
// CHECK-NEXT: %a = spec.kernel(%x) {kind = "row_wise", offsets = [0]} {
// CHECK-NEXT: ^bb0(%in: !spec.tensor<[N, 16], f32>):
// CHECK-NEXT: %out = spec.map(%in) {function = "exp"} -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: spec.yield(%out)
// CHECK-NEXT: } -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: %b = spec.kernel(%a) {kind = "row_wise", offsets = [256]} {
// CHECK-NEXT: ^bb0(%in_1: !spec.tensor<[N, 16], f32>):
// CHECK-NEXT: %out_1 = spec.map(%in_1) {function = "sin"} -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: spec.yield(%out_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: %c = spec.kernel(%b) {kind = "row_wise", offsets = [0]} {
// CHECK-NEXT: ^bb0(%in_2: !spec.tensor<[N, 16], f32>):
// CHECK-NEXT: %out_2 = spec.map(%in_2) {function = "cos"} -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: spec.yield(%out_2)
// CHECK-NEXT: } -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: spec.return(%c)
// CHECK-NEXT: }

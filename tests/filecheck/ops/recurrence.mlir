// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s

// A recurrence over the positions of a sequence: its record, and what is read of it at each position.

builtin.module {
  spec.func @forward(%x: !spec.tensor<[T, 4], f32>, %gain: !spec.tensor<[4], f32>) {
    %sum = spec.recurrence(%x, %gain) {size = "T"} {
  // CHECK: %sum = spec.recurrence(%x, %gain) {size = "T"} {
    ^bb0(%before: !spec.tensor<[4], f32>, %token: !spec.tensor<[4], f32>, %whole: !spec.tensor<[4], f32>):
  // CHECK-NEXT: ^bb0(%before: !spec.tensor<[4], f32>, %token: !spec.tensor<[4], f32>, %whole: !spec.tensor<[4], f32>):
      %after = spec.map(%before, %token) {function = "add"} -> !spec.tensor<[4], f32>
      %scaled = spec.map(%after, %whole) {function = "mul"} -> !spec.tensor<[4], f32>
      %read = spec.reduce(%scaled) {function = "sum", dims = [0]} -> !spec.tensor<[], f32>
      spec.yield(%after, %read)
  // CHECK: spec.yield(%after, %read)
    } -> !spec.tensor<[T], f32>
  // CHECK-NEXT: } -> !spec.tensor<[T], f32>
    // What a few positions before each one gave needs no record.
    %window = spec.window(%x) {count = 3} -> !spec.tensor<[T, 3, 4], f32>
  // CHECK: %window = spec.window(%x) {count = 3} -> !spec.tensor<[T, 3, 4], f32>
    spec.return(%sum)
  }
}

// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s

// What two parts of a step tell each other: a part without arguments takes its dimensions from what it receives.

builtin.module {
  spec.func @attention_part(%x: !spec.tensor<[N, 4], f32>) {
    spec.send(%x) {payload = "there"}
  // CHECK: spec.send(%x) {payload = "there"}
    %y = spec.receive() {payload = "back", shape = ["N", 4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: %y = spec.receive() {payload = "back", shape = ["N", 4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
    spec.return(%y)
  }
  spec.func @ffn_part() {
    %x = spec.receive() {payload = "there", shape = ["N", 4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
    %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[N, 4], f32>
    spec.send(%y) {payload = "back"}
  // CHECK: spec.send(%y) {payload = "back"}
    spec.return()
  }
}

// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s --locations | filecheck %s --check-prefix LOCATION
// RUN: forerun-opt %s --locations | forerun-opt - --locations | filecheck %s --check-prefix LOCATION
// RUN: forerun-opt %s --locations --generic | forerun-opt - --locations | filecheck %s --check-prefix LOCATION

// Source lines are kept, and shown when asked for.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32> loc("model.py":12:0)
  // CHECK: %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
  // CHECK-NOT: loc(
  // CHECK: spec.return(%y)
  // LOCATION: %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32> loc("model.py":12:0)
  spec.return(%y)
}

// RUN: forerun-opt %s -p "split-outputs{ranks=2 rank=1}" | filecheck %s

// The second of two ranks has the second half of the outputs of each matrix. The ranks give each other their halves of
// what the second matrix multiplies; the norm's factor and the sum are computed for the own columns alone.

spec.weight @up {shape = [8, 4], dtype = "f32"}
spec.weight @bias {shape = [8], dtype = "f32"}
spec.weight @down {shape = [4, 8], dtype = "f32"}
// CHECK: spec.weight @"up[4:8]" {shape = [4, 4], dtype = "f32", source = "up", part = [0, 4, 8]}
// CHECK: spec.weight @"bias[4:8]" {shape = [4], dtype = "f32", source = "bias", part = [0, 4, 8]}
// CHECK: spec.weight @"down[2:4]" {shape = [2, 8], dtype = "f32", source = "down", part = [0, 2, 4]}
spec.func @step() attributes {branches = [[0, "attention"], [0, "feed_forward"]]} {
  %x = spec.receive() {payload = "x", shape = ["N", 4], dtype = "f32", branch = 1} -> !spec.tensor<[N, 4], f32>
  %up = spec.parameter @up() {shape = [8, 4], dtype = "f32"} -> !spec.tensor<[8, 4], f32>
  %bias = spec.parameter @bias() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  %inner = spec.linear(%x, %up, %bias) -> !spec.tensor<[N, 8], f32>
  %active = spec.map(%inner) {function = "silu"} -> !spec.tensor<[N, 8], f32>
  // CHECK: %inner = spec.linear(%x, {{%.*}}, {{%.*}}) -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: %active = spec.map(%inner) {function = "silu"} -> !spec.tensor<[N, 4], f32>
  // CHECK: spec.send(%active) {payload = "feed_forward.0.active", peers = true, branch = 1}
  // CHECK-NEXT: [[WHOLE:%.*]] = spec.receive() {payload = "feed_forward.0.active", {{.*}}peers = true, branch = 1} -> !spec.tensor<[N, 8], f32>
  %down = spec.parameter @down() {shape = [4, 8], dtype = "f32"} -> !spec.tensor<[4, 8], f32>
  %added = spec.linear(%active, %down) -> !spec.tensor<[N, 4], f32>
  // CHECK: %added = spec.linear([[WHOLE]], {{%.*}}) -> !spec.tensor<[N, 2], f32>
  spec.send(%added) {payload = "added", branch = 1}
  // CHECK: spec.send(%added) {payload = "added", branch = 1}
  spec.return()
}

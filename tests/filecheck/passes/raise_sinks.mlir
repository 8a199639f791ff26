// RUN: forerun-opt %s --split-input-file -p raise-sinks,canonicalize | filecheck %s

// What is attended to is scaled by sigmoid(logsumexp(scores) - sink).

spec.func @forward(%scores: !spec.tensor<[1, 2, T, T], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %sinks: !spec.tensor<[2], f32>) {
  %most = spec.reduce(%scores) {function = "max", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], f32>
  %shifted = spec.map(%scores, %most) {function = "sub"} -> !spec.tensor<[1, 2, T, T], f32>
  %exponential = spec.map(%shifted) {function = "exp"} -> !spec.tensor<[1, 2, T, T], f32>
  %total = spec.reduce(%exponential) {function = "sum", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], f32>
  %log = spec.map(%total) {function = "log"} -> !spec.tensor<[1, 2, T, 1], f32>
  %lse = spec.map(%log, %most) {function = "add"} -> !spec.tensor<[1, 2, T, 1], f32>
  %flat = spec.reshape(%lse) {shape = [1, 2, "T"]} -> !spec.tensor<[1, 2, T], f32>
  %apart = spec.reshape(%sinks) {shape = [1, 2, 1]} -> !spec.tensor<[1, 2, 1], f32>
  %difference = spec.map(%flat, %apart) {function = "sub"} -> !spec.tensor<[1, 2, T], f32>
  %gate = spec.map(%difference) {function = "sigmoid"} -> !spec.tensor<[1, 2, T], f32>
  %factor = spec.reshape(%gate) {shape = [1, 2, "T", 1]} -> !spec.tensor<[1, 2, T, 1], f32>
  %weights = spec.softmax(%scores) {dim = 3} -> !spec.tensor<[1, 2, T, T], f32>
  %attended = spec.matmul(%weights, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%attended, %factor) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: [[COLUMN:%[0-9]+]] = spec.broadcast({{%[0-9]+}}) {shape = [1, 2, "T", 1]} -> !spec.tensor<[1, 2, T, 1], f32>
// CHECK-NEXT: [[JOINED:%[0-9]+]] = spec.concat(%scores, [[COLUMN]]) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
// CHECK-NEXT: [[WEIGHTS:%[0-9]+]] = spec.softmax([[JOINED]]) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
// CHECK-NEXT: [[KEPT:%[0-9]+]] = spec.slice([[WEIGHTS]]) {dim = 3, start = 0, stop = "T"{{.*}}} -> !spec.tensor<[1, 2, T, T], f32>
// CHECK-NEXT: %y = spec.matmul([[KEPT]], %v) -> !spec.tensor<[1, 2, T, 4], f32>

// -----

// Declines: the factor is that of other scores.

spec.func @forward(%scores: !spec.tensor<[1, 2, T, T], f32>, %others: !spec.tensor<[1, 2, T, T], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %sinks: !spec.tensor<[2], f32>) {
  %most = spec.reduce(%others) {function = "max", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], f32>
  %shifted = spec.map(%others, %most) {function = "sub"} -> !spec.tensor<[1, 2, T, T], f32>
  %exponential = spec.map(%shifted) {function = "exp"} -> !spec.tensor<[1, 2, T, T], f32>
  %total = spec.reduce(%exponential) {function = "sum", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], f32>
  %log = spec.map(%total) {function = "log"} -> !spec.tensor<[1, 2, T, 1], f32>
  %lse = spec.map(%log, %most) {function = "add"} -> !spec.tensor<[1, 2, T, 1], f32>
  %apart = spec.reshape(%sinks) {shape = [1, 2, 1, 1]} -> !spec.tensor<[1, 2, 1, 1], f32>
  %difference = spec.map(%lse, %apart) {function = "sub"} -> !spec.tensor<[1, 2, T, 1], f32>
  %gate = spec.map(%difference) {function = "sigmoid"} -> !spec.tensor<[1, 2, T, 1], f32>
  %weights = spec.softmax(%scores) {dim = 3} -> !spec.tensor<[1, 2, T, T], f32>
  %attended = spec.matmul(%weights, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.map(%attended, %gate) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK-NOT: spec.concat
// CHECK: %y = spec.map(%attended, %gate) {function = "mul"}

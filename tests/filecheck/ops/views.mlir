// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | filecheck %s --check-prefix GENERIC

// Views, products, reductions and look-ups.

builtin.module {
// CHECK: builtin.module {
  spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[6, 8], f32>, %b: !spec.tensor<[6], f32>, %i: !spec.tensor<[1, T], i64>) {
  // CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[6, 8], f32>, %b: !spec.tensor<[6], f32>, %i: !spec.tensor<[1, T], i64>) {
    %split = spec.reshape(%x) {shape = [1, "T", 2, 4]} -> !spec.tensor<[1, T, 2, 4], f32>
    // CHECK-NEXT: %split = spec.reshape(%x) {shape = [1, "T", 2, 4]} -> !spec.tensor<[1, T, 2, 4], f32>
    %heads = spec.transpose(%split) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
    // CHECK-NEXT: %heads = spec.transpose(%split) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
    %wide = spec.broadcast(%i) {shape = [3, "T"]} -> !spec.tensor<[3, T], i64>
    // CHECK-NEXT: %wide = spec.broadcast(%i) {shape = [3, "T"]} -> !spec.tensor<[3, T], i64>
    %left = spec.slice(%heads) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
    // CHECK-NEXT: %left = spec.slice(%heads) {dim = 3, start = 0, stop = 2, step = 1} -> !spec.tensor<[1, 2, T, 2], f32>
    %odd = spec.slice(%heads) {dim = 3, start = 1, stop = 4, step = 2} -> !spec.tensor<[1, 2, T, 2], f32>
    // CHECK-NEXT: %odd = spec.slice(%heads) {dim = 3, start = 1, stop = 4, step = 2} -> !spec.tensor<[1, 2, T, 2], f32>
    %head = spec.slice(%x) {dim = 1, start = 0, stop = "T-1"} -> !spec.tensor<[1, T-1, 8], f32>
    // CHECK-NEXT: %head = spec.slice(%x) {dim = 1, start = 0, stop = "T-1"} -> !spec.tensor<[1, T-1, 8], f32>
    %tail = spec.slice(%x) {dim = 1, start = "T-1", stop = "T"} -> !spec.tensor<[1, 1, 8], f32>
    // CHECK-NEXT: %tail = spec.slice(%x) {dim = 1, start = "T-1", stop = "T"} -> !spec.tensor<[1, 1, 8], f32>
    %joined = spec.concat(%x, %head) {dim = 1} -> !spec.tensor<[1, 2*T-1, 8], f32>
    // CHECK-NEXT: %joined = spec.concat(%x, %head) {dim = 1} -> !spec.tensor<[1, 2*T-1, 8], f32>
    %linear = spec.linear(%x, %w, %b) -> !spec.tensor<[1, T, 6], f32>
    // CHECK-NEXT: %linear = spec.linear(%x, %w, %b) -> !spec.tensor<[1, T, 6], f32>
    %experts = spec.broadcast(%w) {shape = [3, 6, 8]} -> !spec.tensor<[3, 6, 8], f32>
    // CHECK-NEXT: %experts = spec.broadcast(%w) {shape = [3, 6, 8]} -> !spec.tensor<[3, 6, 8], f32>
    %biases = spec.broadcast(%b) {shape = [3, 6]} -> !spec.tensor<[3, 6], f32>
    // CHECK-NEXT: %biases = spec.broadcast(%b) {shape = [3, 6]} -> !spec.tensor<[3, 6], f32>
    %choices = spec.reshape(%i) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], i64>
    // CHECK-NEXT: %choices = spec.reshape(%i) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], i64>
    %chosen = spec.expert_linear(%x, %experts, %choices, %biases) -> !spec.tensor<[1, T, 1, 6], f32>
    // CHECK-NEXT: %chosen = spec.expert_linear(%x, %experts, %choices, %biases) -> !spec.tensor<[1, T, 1, 6], f32>
    %across = spec.transpose(%heads) {permutation = [0, 1, 3, 2]} -> !spec.tensor<[1, 2, 4, T], f32>
    // CHECK-NEXT: %across = spec.transpose(%heads) {permutation = [0, 1, 3, 2]} -> !spec.tensor<[1, 2, 4, T], f32>
    %product = spec.matmul(%heads, %across) -> !spec.tensor<[1, 2, T, T], f32>
    // CHECK-NEXT: %product = spec.matmul(%heads, %across) -> !spec.tensor<[1, 2, T, T], f32>
    %total = spec.reduce(%x) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
    // CHECK-NEXT: %total = spec.reduce(%x) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
    %place = spec.reduce(%x) {function = "argmax", dims = [2]} -> !spec.tensor<[1, T], i64>
    // CHECK-NEXT: %place = spec.reduce(%x) {function = "argmax", dims = [2]} -> !spec.tensor<[1, T], i64>
    %running = spec.scan(%i) {dim = 1} -> !spec.tensor<[1, T], i64>
    // CHECK-NEXT: %running = spec.scan(%i) {dim = 1} -> !spec.tensor<[1, T], i64>
    %probability = spec.softmax(%x) {dim = 2} -> !spec.tensor<[1, T, 8], f32>
    // CHECK-NEXT: %probability = spec.softmax(%x) {dim = 2} -> !spec.tensor<[1, T, 8], f32>
    %rows = spec.gather(%w, %i) -> !spec.tensor<[1, T, 8], f32>
    // CHECK-NEXT: %rows = spec.gather(%w, %i) -> !spec.tensor<[1, T, 8], f32>
    %taken = spec.take_along(%i, %i) {dim = 1} -> !spec.tensor<[1, T], i64>
    // CHECK-NEXT: %taken = spec.take_along(%i, %i) {dim = 1} -> !spec.tensor<[1, T], i64>
    %best, %ids = spec.topk(%x) {k = 2, index_dtype = "i32"} -> !spec.tensor<[1, T, 2], f32>, !spec.tensor<[1, T, 2], i32>
    // CHECK-NEXT: %best, %ids = spec.topk(%x) {k = 2, index_dtype = "i32"} -> !spec.tensor<[1, T, 2], f32>, !spec.tensor<[1, T, 2], i32>
    spec.return(%best, %ids)
    // CHECK-NEXT: spec.return(%best, %ids)
  }
  // CHECK-NEXT: }
}
// CHECK-NEXT: }
// GENERIC: "spec.slice"(%x) <{dim = 1 : i64, start = "T-1", stop = "T"}> : (!spec.tensor<[1, T, 8], f32>) -> !spec.tensor<[1, 1, 8], f32>
// GENERIC: %best, %ids = "spec.topk"(%x) <{k = 2 : i64, index_dtype = "i32"}> : (!spec.tensor<[1, T, 8], f32>) -> (!spec.tensor<[1, T, 2], f32>, !spec.tensor<[1, T, 2], i32>)

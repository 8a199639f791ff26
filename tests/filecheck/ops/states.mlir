// RUN: forerun-opt %s | filecheck %s
// RUN: forerun-opt %s | forerun-opt - | filecheck %s
// RUN: forerun-opt %s --generic | forerun-opt - | filecheck %s
// RUN: forerun-opt %s -p fuse-kernels | filecheck %s --check-prefix FUSED

// A state per row, a state per request, and the entry that writes it.

builtin.module {
// CHECK: builtin.module {
  spec.weight @table {shape = [16, 4], dtype = "f32"}
  // CHECK-NEXT: spec.weight @table {shape = [16, 4], dtype = "f32"}
  spec.state @sum {per = "row", shape = [4], dtype = "f32"}
  // CHECK-NEXT: spec.state @sum {per = "row", shape = [4], dtype = "f32"}
  spec.state @window {per = "position", shape = [4], dtype = "f32"}
  // CHECK-NEXT: spec.state @window {per = "position", shape = [4], dtype = "f32"}
  spec.state @memory {per = "request", shape = [4], dtype = "f32"}
  // CHECK-NEXT: spec.state @memory {per = "request", shape = [4], dtype = "f32"}
  spec.func @encode(%source: !spec.tensor<[1, S], i32>, %requests: !spec.tensor<[1], i32>) {
  // CHECK-NEXT: spec.func @encode(%source: !spec.tensor<[1, S], i32>, %requests: !spec.tensor<[1], i32>) {
    %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  // CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
    %x = spec.gather(%table, %source) -> !spec.tensor<[1, S, 4], f32>
  // CHECK-NEXT: %x = spec.gather(%table, %source) -> !spec.tensor<[1, S, 4], f32>
    %mean = spec.reduce(%x) {function = "mean", dims = [1]} -> !spec.tensor<[1, 4], f32>
  // CHECK-NEXT: %mean = spec.reduce(%x) {function = "mean", dims = [1]} -> !spec.tensor<[1, 4], f32>
    spec.state_write @memory(%mean, %requests)
  // CHECK-NEXT: spec.state_write @memory(%mean, %requests)
    spec.return()
  // CHECK-NEXT: spec.return()
  }
  // CHECK-NEXT: }
  spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %block_tables: !spec.tensor<[S, B], i32>, %requests: !spec.tensor<[S], i32>) {
  // CHECK-NEXT: spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %block_tables: !spec.tensor<[S, B], i32>, %requests: !spec.tensor<[S], i32>) {
    %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  // CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
    %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
    %own = spec.gather(%requests, %sequences) -> !spec.tensor<[N], i32>
  // CHECK-NEXT: %own = spec.gather(%requests, %sequences) -> !spec.tensor<[N], i32>
    %memory = spec.state_read @memory(%own) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: %memory = spec.state_read @memory(%own) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
    %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  // CHECK-NEXT: %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
    ^bb0(%before: !spec.tensor<[4], f32>, %token: !spec.tensor<[4], f32>):
  // CHECK-NEXT: ^bb0(%before: !spec.tensor<[4], f32>, %token: !spec.tensor<[4], f32>):
      %after = spec.map(%before, %token) {function = "add"} -> !spec.tensor<[4], f32>
  // CHECK-NEXT: %after = spec.map(%before, %token) {function = "add"} -> !spec.tensor<[4], f32>
      spec.yield(%after, %after)
  // CHECK-NEXT: spec.yield(%after, %after)
    } -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: } -> !spec.tensor<[N, 4], f32>
    %y = spec.map(%sum, %memory) {function = "mul"} -> !spec.tensor<[N, 4], f32>
  // CHECK-NEXT: %y = spec.map(%sum, %memory) {function = "mul"} -> !spec.tensor<[N, 4], f32>
    %earlier = spec.ancestors(%positions, %sequences, %bases, %paths, %block_tables) {count = 2, block = 16} -> !spec.tensor<[N, 2], i32>
  // CHECK-NEXT: %earlier = spec.ancestors(%positions, %sequences, %bases, %paths, %block_tables) {count = 2, block = 16} -> !spec.tensor<[N, 2], i32>
    spec.state_write @window(%x, %slots)
  // CHECK-NEXT: spec.state_write @window(%x, %slots)
    %window = spec.state_read @window(%earlier) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 2, 4], f32>
  // CHECK-NEXT: %window = spec.state_read @window(%earlier) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 2, 4], f32>
    spec.return(%y, %window)
  // CHECK-NEXT: spec.return(%y, %window)
  }
  // CHECK-NEXT: }
}
// CHECK-NEXT: }

// Every entry is kernels; a recurrence stands alone in its own, and no row reads what another may still write.
// FUSED: spec.func @encode
// FUSED-NEXT: spec.kernel(%source, %requests) {{.*}}kind = "row_wise"}
// FUSED: spec.state_write @memory
// FUSED: spec.func @step
// FUSED: %x = spec.kernel(%tokens, %slots) {{.*}}kind = "row_wise"}
// FUSED: %sum = spec.kernel(%parents, %records, %order, %x) {{.*}}kind = "recurrence"}
// FUSED-NEXT: ^bb0
// FUSED-NEXT: spec.tree_recurrence @sum
// FUSED: %earlier = spec.kernel(%positions, %sequences, %bases, %paths, %block_tables) {{.*}}kind = "ancestors"}
// FUSED: %window = spec.kernel(%earlier) {{.*}}kind = "row_wise"}
// FUSED: spec.state_read @window

// RUN: forerun-opt %s --split-input-file -p insert-kv-cache{block=8} | filecheck %s

// Tokens become rows, positions an argument, attention a cache write and an attention over the cache.

spec.weight @table {shape = [16, 8], dtype = "f32"}
spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %table = spec.parameter @table() {shape = [16, 8], dtype = "f32"} -> !spec.tensor<[16, 8], f32>
  %x = spec.gather(%table, %input_ids) -> !spec.tensor<[1, T, 8], f32>
  %range = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %place = spec.gather(%table, %range) -> !spec.tensor<[T, 8], f32>
  %sum = spec.map(%x, %place) {function = "add"} -> !spec.tensor<[1, T, 8], f32>
  %split = spec.reshape(%sum) {shape = [1, "T", 2, 4]} -> !spec.tensor<[1, T, 2, 4], f32>
  %heads = spec.transpose(%split) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
  %attended = spec.attention(%heads, %heads, %heads) {scale = 0.5, causal = true} -> !spec.tensor<[1, 2, T, 4], f32>
  %back = spec.transpose(%attended) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, T, 2, 4], f32>
  %y = spec.reshape(%back) {shape = [1, "T", 8]} -> !spec.tensor<[1, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.weight @table {shape = [16, 8], dtype = "f32"}
// CHECK-NEXT: spec.state @attention.0.keys {per = "position", shape = [2, 4], dtype = "f32"}
// CHECK-NEXT: spec.state @attention.0.values {per = "position", shape = [2, 4], dtype = "f32"}
// CHECK-NEXT: spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
// CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 8], dtype = "f32"} -> !spec.tensor<[16, 8], f32>
// CHECK-NEXT: %x = spec.gather(%table, %input_ids) -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: %range = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
// CHECK-NEXT: %place = spec.gather(%table, %range) -> !spec.tensor<[T, 8], f32>
// CHECK-NEXT: %sum = spec.map(%x, %place) {function = "add"} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: %split = spec.reshape(%sum) {shape = [1, "T", 2, 4]} -> !spec.tensor<[1, T, 2, 4], f32>
// CHECK-NEXT: %heads = spec.transpose(%split) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %attended = spec.attention(%heads, %heads, %heads) {scale = 0.5, causal = true} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: %back = spec.transpose(%attended) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, T, 2, 4], f32>
// CHECK-NEXT: %y = spec.reshape(%back) {shape = [1, "T", 8]} -> !spec.tensor<[1, T, 8], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }
// CHECK-NEXT: spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
// CHECK-NEXT: [[S0:%[0-9]+]] = spec.cast(%tokens) {dtype = "i64"} -> !spec.tensor<[N], i64>
// CHECK-NEXT: [[S1:%[0-9]+]] = spec.reshape([[S0]]) {shape = [1, "N"]} -> !spec.tensor<[1, N], i64>
// CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 8], dtype = "f32"} -> !spec.tensor<[16, 8], f32>
// CHECK-NEXT: %x = spec.gather(%table, [[S1]]) -> !spec.tensor<[1, N, 8], f32>
// CHECK-NEXT: [[S2:%[0-9]+]] = spec.cast(%positions) {dtype = "i64"} -> !spec.tensor<[N], i64>
// CHECK-NEXT: %place = spec.gather(%table, [[S2]]) -> !spec.tensor<[N, 8], f32>
// CHECK-NEXT: %sum = spec.map(%x, %place) {function = "add"} -> !spec.tensor<[1, N, 8], f32>
// CHECK-NEXT: %split = spec.reshape(%sum) {shape = [1, "N", 2, 4]} -> !spec.tensor<[1, N, 2, 4], f32>
// CHECK-NEXT: %heads = spec.transpose(%split) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, N, 4], f32>
// CHECK-NEXT: [[S3:%[0-9]+]] = spec.transpose(%heads) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, N, 2, 4], f32>
// CHECK-NEXT: [[S4:%[0-9]+]] = spec.reshape([[S3]]) {shape = ["N", 2, 4]} -> !spec.tensor<[N, 2, 4], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys([[S4]], %slots)
// CHECK-NEXT: spec.state_write @attention.0.values([[S4]], %slots)
// CHECK-NEXT: [[S5:%[0-9]+]] = spec.constant() {value = 1, dtype = "i32"} -> !spec.tensor<[], i32>
// CHECK-NEXT: [[S6:%[0-9]+]] = spec.map(%positions, [[S5]]) {function = "add"} -> !spec.tensor<[N], i32>
// CHECK-NEXT: [[S7:%[0-9]+]] = spec.constant() {value = 0, dtype = "i32"} -> !spec.tensor<[], i32>
// CHECK-NEXT: [[S8:%[0-9]+]] = spec.broadcast([[S7]]) {shape = ["N", 0]} -> !spec.tensor<[N, 0], i32>
// CHECK-NEXT: [[S9:%[0-9]+]] = spec.tree_attention @attention.0.keys([[S4]], %positions, %sequences, [[S6]], [[S8]], %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 2, 4], f32>
// CHECK-NEXT: [[S10:%[0-9]+]] = spec.reshape([[S9]]) {shape = [1, "N", 2, 4]} -> !spec.tensor<[1, N, 2, 4], f32>
// CHECK-NEXT: [[S11:%[0-9]+]] = spec.transpose([[S10]]) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, N, 4], f32>
// CHECK-NEXT: %back = spec.transpose([[S11]]) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, N, 2, 4], f32>
// CHECK-NEXT: %y = spec.reshape(%back) {shape = [1, "N", 8]} -> !spec.tensor<[1, N, 8], f32>
// CHECK-NEXT: [[S12:%[0-9]+]] = spec.reshape(%y) {shape = ["N", 8]} -> !spec.tensor<[N, 8], f32>
// CHECK-NEXT: spec.return([[S12]])
// CHECK-NEXT: }

// -----

// A running sum along the sequence is a state per row.

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %zero = spec.constant() {value = 0, dtype = "i64"} -> !spec.tensor<[], i64>
  %shown = spec.map(%input_ids, %zero) {function = "ne"} -> !spec.tensor<[1, T], i1>
  %ones = spec.cast(%shown) {dtype = "i64"} -> !spec.tensor<[1, T], i64>
  %count = spec.scan(%ones) {dim = 1} -> !spec.tensor<[1, T], i64>
  %x = spec.cast(%count) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  %y = spec.reshape(%x) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
  spec.return(%y)
}
// CHECK: spec.state @scan.0 {per = "row", shape = [1], dtype = "f32"}
// CHECK: spec.func @step({{.*}}%order: !spec.tensor<[N], i32>
// CHECK: spec.tree_recurrence @scan.0(%parents, %records, %order, {{%[0-9a-z]+}}) {} {
// CHECK-NEXT: ^bb0([[BEFORE:%[0-9a-z]+]]: !spec.tensor<[1], f32>, [[OWN:%[0-9a-z]+]]: !spec.tensor<[1], f32>):
// CHECK-NEXT: [[SUM:%[0-9a-z]+]] = spec.map([[BEFORE]], [[OWN]]) {function = "add"} -> !spec.tensor<[1], f32>
// CHECK-NEXT: spec.yield([[SUM]], [[SUM]])

// -----

// A window is read from what the ancestors of a row left, a state per position.

spec.weight @table {shape = [32, 4], dtype = "f32"}
spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %table = spec.parameter @table() {shape = [32, 4], dtype = "f32"} -> !spec.tensor<[32, 4], f32>
  %ids = spec.reshape(%input_ids) {shape = ["T"]} -> !spec.tensor<[T], i64>
  %x = spec.gather(%table, %ids) -> !spec.tensor<[T, 4], f32>
  %window = spec.window(%x) {count = 2} -> !spec.tensor<[T, 2, 4], f32>
  %sum = spec.reduce(%window) {function = "sum", dims = [1]} -> !spec.tensor<[T, 4], f32>
  %y = spec.reshape(%sum) {shape = [1, "T", 4]} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.state @window.0 {per = "position", shape = [4], dtype = "f32"}
// CHECK: spec.func @step(
// CHECK: spec.state_write @window.0(%x, %slots)
// CHECK: [[A:%[0-9a-z_]+]] = spec.ancestors(%positions, %sequences, {{%[0-9a-z_]+}}, {{%[0-9a-z_]+}}, %block_tables) {count = 2, block = 8} -> !spec.tensor<[N, 2], i32>
// CHECK-NEXT: [[R:%[0-9a-z_]+]] = spec.state_read @window.0([[A]]) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 2, 4], f32>
// CHECK-NEXT: %sum = spec.reduce([[R]])

// -----

// Beside a running sum, which is a state per row, a window is one too: memory does not grow with the text.

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %ids = spec.reshape(%input_ids) {shape = ["T"]} -> !spec.tensor<[T], i64>
  %x = spec.cast(%ids) {dtype = "f32"} -> !spec.tensor<[T], f32>
  %window = spec.window(%x) {count = 2} -> !spec.tensor<[T, 2], f32>
  %total = spec.scan(%x) {dim = 0} -> !spec.tensor<[T], f32>
  %sum = spec.reduce(%window) {function = "sum", dims = [1]} -> !spec.tensor<[T], f32>
  %both = spec.map(%sum, %total) {function = "add"} -> !spec.tensor<[T], f32>
  %y = spec.reshape(%both) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
  spec.return(%y)
}
// CHECK: spec.state @window.0 {per = "row", shape = [2], dtype = "f32"}
// CHECK: spec.tree_recurrence @window.0(%parents, %records, %order, %x) {} {
// CHECK-NEXT: ^bb0([[BEFORE:%[0-9a-z]+]]: !spec.tensor<[2], f32>, [[OWN:%[0-9a-z]+]]: !spec.tensor<[], f32>):
// CHECK-NEXT: [[LAST:%[0-9a-z]+]] = spec.reshape([[OWN]]) {shape = [1]} -> !spec.tensor<[1], f32>
// CHECK-NEXT: [[KEPT:%[0-9a-z]+]] = spec.slice([[BEFORE]]) {dim = 0, start = 1, stop = 2, step = 1} -> !spec.tensor<[1], f32>
// CHECK-NEXT: [[AFTER:%[0-9a-z]+]] = spec.concat([[KEPT]], [[LAST]]) {dim = 0} -> !spec.tensor<[2], f32>
// CHECK-NEXT: spec.yield([[AFTER]], [[BEFORE]])
// CHECK-NOT: spec.ancestors

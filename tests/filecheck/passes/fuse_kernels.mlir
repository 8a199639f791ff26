// RUN: forerun-opt %s -p fuse-kernels | filecheck %s

// A look-up, then norm + linear layers + writes to states, attention, linear + residual, head + candidates.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.weight @query {shape = [4, 4], dtype = "f32"}
spec.weight @key {shape = [4, 4], dtype = "f32"}
spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
  %normed = spec.rms_norm(%x) {eps = 1.0e-05} -> !spec.tensor<[N, 4], f32>
  %wq = spec.parameter @query() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %wk = spec.parameter @key() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %q = spec.linear(%normed, %wq) -> !spec.tensor<[N, 4], f32>
  %k = spec.linear(%normed, %wk) -> !spec.tensor<[N, 4], f32>
  %queries = spec.reshape(%q) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  %keys = spec.reshape(%k) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.0.keys(%keys, %slots)
  spec.state_write @attention.0.values(%keys, %slots)
  %attended = spec.tree_attention @attention.0.keys(%queries, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
  %flat = spec.reshape(%attended) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
  %out = spec.linear(%flat, %wq) -> !spec.tensor<[N, 4], f32>
  %sum = spec.map(%x, %out) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %logits = spec.linear(%sum, %table) -> !spec.tensor<[N, 16], f32>
  %values, %ids = spec.topk(%logits) {k = 2, index_dtype = "i32"} -> !spec.tensor<[N, 2], f32>, !spec.tensor<[N, 2], i32>
  spec.return(%logits, %ids, %values)
}
// CHECK: spec.weight @table {shape = [16, 4], dtype = "f32"}
// CHECK-NEXT: spec.weight @query {shape = [4, 4], dtype = "f32"}
// CHECK-NEXT: spec.weight @key {shape = [4, 4], dtype = "f32"}
// CHECK-NEXT: spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK-NEXT: spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK-NEXT: spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) attributes {branches = [[0, "attention"]]} {
// CHECK-NEXT: %x = spec.kernel(%tokens) {label = "table.lookup", kind = "row_wise", stream = 0} {
// CHECK-NEXT: ^bb0(%tokens_1: !spec.tensor<[N], i32>):
// CHECK-NEXT: %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
// CHECK-NEXT: %x_1 = spec.gather(%table, %tokens_1) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: spec.yield(%x_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %q = spec.kernel(%x, %slots) {label = "query_key", kind = "linear", branch = 0} {
// CHECK-NEXT: ^bb0(%x_2: !spec.tensor<[N, 4], f32>, %slots_1: !spec.tensor<[N], i32>):
// CHECK-NEXT: %normed = spec.rms_norm(%x_2) {eps = 1.0e-05} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %wq = spec.parameter @query() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %wk = spec.parameter @key() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %q_1 = spec.linear(%normed, %wq) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %k = spec.linear(%normed, %wk) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %keys = spec.reshape(%k) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys(%keys, %slots_1)
// CHECK-NEXT: spec.state_write @attention.0.values(%keys, %slots_1)
// CHECK-NEXT: spec.yield(%q_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %attended = spec.kernel(%q, %positions, %sequences, %bases, %paths, %block_tables) {label = "attention", kind = "attention", branch = 0} {
// CHECK-NEXT: ^bb0(%q_2: !spec.tensor<[N, 4], f32>, %positions_1: !spec.tensor<[N], i32>, %sequences_1: !spec.tensor<[N], i32>, %bases_1: !spec.tensor<[N], i32>, %paths_1: !spec.tensor<[N, D], i32>, %block_tables_1: !spec.tensor<[S, B], i32>):
// CHECK-NEXT: %queries = spec.reshape(%q_2) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: %attended_1 = spec.tree_attention @attention.0.keys(%queries, %positions_1, %sequences_1, %bases_1, %paths_1, %block_tables_1) {values = @attention.0.values, block = 8, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.yield(%attended_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: %sum = spec.kernel(%attended, %x) {label = "query", kind = "linear", branch = 0, stream = 1} {
// CHECK-NEXT: ^bb0(%attended_2: !spec.tensor<[N, 1, 4], f32>, %x_3: !spec.tensor<[N, 4], f32>):
// CHECK-NEXT: %wq_1 = spec.parameter @query() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
// CHECK-NEXT: %flat = spec.reshape(%attended_2) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %out = spec.linear(%flat, %wq_1) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %sum_1 = spec.map(%x_3, %out) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: spec.yield(%sum_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %logits, %values, %ids = spec.kernel(%sum) {label = "head", kind = "head"} {
// CHECK-NEXT: ^bb0(%sum_2: !spec.tensor<[N, 4], f32>):
// CHECK-NEXT: %table_1 = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
// CHECK-NEXT: %logits_1 = spec.linear(%sum_2, %table_1) -> !spec.tensor<[N, 16], f32>
// CHECK-NEXT: %values_1, %ids_1 = spec.topk(%logits_1) {k = 2, index_dtype = "i32"} -> !spec.tensor<[N, 2], f32>, !spec.tensor<[N, 2], i32>
// CHECK-NEXT: spec.yield(%logits_1, %values_1, %ids_1)
// CHECK-NEXT: } -> !spec.tensor<[N, 16], f32>, !spec.tensor<[N, 2], f32>, !spec.tensor<[N, 2], i32>
// CHECK-NEXT: spec.return(%logits, %ids, %values)
// CHECK-NEXT: }

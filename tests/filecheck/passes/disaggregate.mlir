// RUN: forerun-opt %s -p disaggregate | filecheck %s

// One layer: attention and its cache on one side, the feed-forward part on the other. Its norm, which reads what is sent
// anyway, costs no traffic; the sum with the stream stays with the stream.

spec.weight @table {shape = [16, 4], dtype = "f32"}
spec.weight @o {shape = [4, 4], dtype = "f32"}
spec.weight @up {shape = [8, 4], dtype = "f32"}
spec.weight @down {shape = [4, 8], dtype = "f32"}
spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %positions: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>, %slots: !spec.tensor<[N], i32>, %bases: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %block_tables: !spec.tensor<[S, B], i32>) {
  %table = spec.parameter @table() {shape = [16, 4], dtype = "f32"} -> !spec.tensor<[16, 4], f32>
  %x = spec.gather(%table, %tokens) -> !spec.tensor<[N, 4], f32>
  %heads = spec.reshape(%x) {shape = ["N", 1, 4]} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.0.keys(%heads, %slots)
  spec.state_write @attention.0.values(%heads, %slots)
  %y = spec.tree_attention @attention.0.keys(%heads, %positions, %sequences, %bases, %paths, %block_tables) {values = @attention.0.values, block = 16, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 1, 4], f32>
  %flat = spec.reshape(%y) {shape = ["N", 4]} -> !spec.tensor<[N, 4], f32>
  %o = spec.parameter @o() {shape = [4, 4], dtype = "f32"} -> !spec.tensor<[4, 4], f32>
  %out = spec.linear(%flat, %o) -> !spec.tensor<[N, 4], f32>
  %mixed = spec.map(%x, %out) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %norm = spec.rms_norm(%mixed) {eps = 1.0e-05} -> !spec.tensor<[N, 4], f32>
  %up = spec.parameter @up() {shape = [8, 4], dtype = "f32"} -> !spec.tensor<[8, 4], f32>
  %inner = spec.linear(%norm, %up) -> !spec.tensor<[N, 8], f32>
  %active = spec.map(%inner) {function = "silu"} -> !spec.tensor<[N, 8], f32>
  %down = spec.parameter @down() {shape = [4, 8], dtype = "f32"} -> !spec.tensor<[4, 8], f32>
  %added = spec.linear(%active, %down) -> !spec.tensor<[N, 4], f32>
  %stream = spec.map(%mixed, %added) {function = "add"} -> !spec.tensor<[N, 4], f32>
  %logits = spec.linear(%stream, %table) -> !spec.tensor<[N, 16], f32>
  spec.return(%logits)
}
// CHECK: spec.func @attention_part(%tokens: !spec.tensor<[N], i32>
// CHECK-SAME: attributes {branches = {{\[\[}}0, "attention"], [0, "feed_forward"]]}
// CHECK: %mixed = spec.map(%x, %out) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK: spec.send(%{{mixed|norm}}) {payload = "feed_forward.0.[[THERE:[a-z]+]]", branch = 1}
// CHECK-NEXT: %added = spec.receive() {payload = "feed_forward.0.added", shape = ["N", 4], dtype = "f32", branch = 1} -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: %stream = spec.map(%mixed, %added) {function = "add"} -> !spec.tensor<[N, 4], f32>
// CHECK: spec.func @ffn_part() attributes
// CHECK: spec.receive() {payload = "feed_forward.0.[[THERE]]", shape = ["N", 4], dtype = "f32", branch = 1} -> !spec.tensor<[N, 4], f32>
// CHECK: %added = spec.linear(%active, %down) -> !spec.tensor<[N, 4], f32>
// CHECK-NEXT: spec.send(%added) {payload = "feed_forward.0.added", branch = 1}
// CHECK-NEXT: spec.return()

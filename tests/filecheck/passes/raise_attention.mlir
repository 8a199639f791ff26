// RUN: forerun-opt %s --split-input-file -p raise-attention,canonicalize | filecheck %s

// softmax(q k^T / 2 + mask) v.

spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[1, 2, T, 4], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %mask: !spec.tensor<[1, 1, T, T], f32>) {
  %across = spec.transpose(%k) {permutation = [0, 1, 3, 2]} -> !spec.tensor<[1, 2, 4, T], f32>
  %product = spec.matmul(%q, %across) -> !spec.tensor<[1, 2, T, T], f32>
  %two = spec.constant() {value = 2.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %scaled = spec.map(%product, %two) {function = "div"} -> !spec.tensor<[1, 2, T, T], f32>
  %masked = spec.map(%scaled, %mask) {function = "add"} -> !spec.tensor<[1, 2, T, T], f32>
  %weights = spec.softmax(%masked) {dim = 3} -> !spec.tensor<[1, 2, T, T], f32>
  %y = spec.matmul(%weights, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[1, 2, T, 4], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %mask: !spec.tensor<[1, 1, T, T], f32>) {
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.reshape(%q) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: [[F1:%[0-9]+]] = spec.reshape(%v) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: [[F3:%[0-9]+]] = spec.reshape(%k) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: [[F4:%[0-9]+]] = spec.reshape(%mask) {shape = [1, "T", "T"]} -> !spec.tensor<[1, T, T], f32>
// CHECK-NEXT: [[F5:%[0-9]+]] = spec.attention([[F0]], [[F3]], [[F1]], [[F4]]) {scale = 0.5, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: %y = spec.reshape([[F5]]) {shape = [1, 2, "T", 4]} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Scores capped by 30 tanh(s / 30), in heads of three dimensions, a mask of bools.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %visible: !spec.tensor<[T, T], i1>) {
  %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
  %product = spec.matmul(%q, %across) -> !spec.tensor<[2, T, T], f32>
  %cap = spec.constant() {value = 32.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %small = spec.map(%product, %cap) {function = "div"} -> !spec.tensor<[2, T, T], f32>
  %squashed = spec.map(%small) {function = "tanh"} -> !spec.tensor<[2, T, T], f32>
  %capped = spec.map(%squashed, %cap) {function = "mul"} -> !spec.tensor<[2, T, T], f32>
  %low = spec.constant() {value = -1.0e+09, dtype = "f32"} -> !spec.tensor<[], f32>
  %masked = spec.map(%visible, %capped, %low) {function = "where"} -> !spec.tensor<[2, T, T], f32>
  %weights = spec.softmax(%masked) {dim = 2} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %visible: !spec.tensor<[T, T], i1>) {
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.reshape(%visible) {shape = [1, "T", "T"]} -> !spec.tensor<[1, T, T], i1>
// CHECK-NEXT: %y = spec.attention(%q, %k, %v, [[F0]]) {scale = 1.0, softcap = 32.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines: a score of -5 does not hide a key.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %visible: !spec.tensor<[T, T], i1>) {
  %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
  %product = spec.matmul(%q, %across) -> !spec.tensor<[2, T, T], f32>
  %low = spec.constant() {value = -5.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %masked = spec.map(%visible, %product, %low) {function = "where"} -> !spec.tensor<[2, T, T], f32>
  %weights = spec.softmax(%masked) {dim = 2} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: // raise-attention: a softmax at loc(unknown) is not in a softmax(scale * q k^T + mask) v
// CHECK: spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %visible: !spec.tensor<[T, T], i1>) {
// CHECK-NEXT: %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
// CHECK-NEXT: %product = spec.matmul(%q, %across) -> !spec.tensor<[2, T, T], f32>
// CHECK-NEXT: %low = spec.constant() {value = -5.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %masked = spec.map(%visible, %product, %low) {function = "where"} -> !spec.tensor<[2, T, T], f32>
// CHECK-NEXT: %weights = spec.softmax(%masked) {dim = 2} -> !spec.tensor<[2, T, T], f32>
// CHECK-NEXT: %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Declines silently: the softmax is over the rows, so this is no attention at all.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>) {
  %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
  %product = spec.matmul(%q, %across) -> !spec.tensor<[2, T, T], f32>
  %weights = spec.softmax(%product) {dim = 1} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>) {
// CHECK-NEXT: %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
// CHECK-NEXT: %product = spec.matmul(%q, %across) -> !spec.tensor<[2, T, T], f32>
// CHECK-NEXT: %weights = spec.softmax(%product) {dim = 1} -> !spec.tensor<[2, T, T], f32>
// CHECK-NEXT: %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Torch's own attention, decomposed: numbers on the queries and the keys, and a guard for a row without a visible key.

spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[1, 2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %m: !spec.tensor<[1, 1, T, T], f32>) {
  %half = spec.constant() {value = 0.5, dtype = "f32"} -> !spec.tensor<[], f32>
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %low = spec.constant() {value = 0xfff0000000000000 : f64, dtype = "f32"} -> !spec.tensor<[], f32>
  %less = spec.map(%q, %half) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %query = spec.reshape(%less) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
  %turned = spec.transpose(%k) {permutation = [0, 1, 3, 2]} -> !spec.tensor<[1, 2, 4, T], f32>
  %fewer = spec.map(%turned, %half) {function = "mul"} -> !spec.tensor<[1, 2, 4, T], f32>
  %key = spec.reshape(%fewer) {shape = [2, 4, "T"]} -> !spec.tensor<[2, 4, T], f32>
  %product = spec.matmul(%query, %key) -> !spec.tensor<[2, T, T], f32>
  %heads = spec.reshape(%product) {shape = [1, 2, "T", "T"]} -> !spec.tensor<[1, 2, T, T], f32>
  %scores = spec.map(%heads, %m) {function = "add"} -> !spec.tensor<[1, 2, T, T], f32>
  %softmax = spec.softmax(%scores) {dim = 3} -> !spec.tensor<[1, 2, T, T], f32>
  %equal = spec.map(%scores, %low) {function = "eq"} -> !spec.tensor<[1, 2, T, T], i1>
  %none = spec.reduce(%equal) {function = "all", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], i1>
  %guarded = spec.map(%none, %zero, %softmax) {function = "where"} -> !spec.tensor<[1, 2, T, T], f32>
  %weights = spec.reshape(%guarded) {shape = [2, "T", "T"]} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%weights, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(
// CHECK: %y = spec.attention({{.*}}) {scale = 0.25, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)

// -----

// What exporters write: queries and keys each scaled, keys transposed in three dimensions, and zeros for a row whose softmax
// is not a number.

spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %mask: !spec.tensor<[T, T], f32>) {
  %half = spec.constant() {value = 0.5, dtype = "f32"} -> !spec.tensor<[], f32>
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %across = spec.transpose(%k) {permutation = [0, 2, 1]} -> !spec.tensor<[2, 4, T], f32>
  %keys = spec.reshape(%across) {shape = [1, 2, 4, "T"]} -> !spec.tensor<[1, 2, 4, T], f32>
  %small_q = spec.map(%q, %half) {function = "mul"} -> !spec.tensor<[1, 2, T, 4], f32>
  %small_k = spec.map(%keys, %half) {function = "mul"} -> !spec.tensor<[1, 2, 4, T], f32>
  %product = spec.matmul(%small_q, %small_k) -> !spec.tensor<[1, 2, T, T], f32>
  %masked = spec.map(%product, %mask) {function = "add"} -> !spec.tensor<[1, 2, T, T], f32>
  %weights = spec.softmax(%masked) {dim = 3} -> !spec.tensor<[1, 2, T, T], f32>
  %nan = spec.map(%weights, %weights) {function = "ne"} -> !spec.tensor<[1, 2, T, T], i1>
  %guarded = spec.map(%nan, %zero, %weights) {function = "where"} -> !spec.tensor<[1, 2, T, T], f32>
  %y = spec.matmul(%guarded, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward
// CHECK-NEXT: [[F1:%[0-9]+]] = spec.reshape(%v) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: [[F2:%[0-9]+]] = spec.reshape(%mask) {shape = [1, "T", "T"]} -> !spec.tensor<[1, T, T], f32>
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.reshape(%q) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: [[F3:%[0-9]+]] = spec.attention([[F0]], %k, [[F1]], [[F2]]) {scale = 0.25, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
// CHECK-NEXT: %y = spec.reshape([[F3]]) {shape = [1, 2, "T", 4]} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: spec.return(%y)

// -----

// Declines: the guard gives something else than nothing.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, 4, T], f32>, %v: !spec.tensor<[2, T, 4], f32>) {
  %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %low = spec.constant() {value = 0xfff0000000000000 : f64, dtype = "f32"} -> !spec.tensor<[], f32>
  %scores = spec.matmul(%q, %k) -> !spec.tensor<[2, T, T], f32>
  %softmax = spec.softmax(%scores) {dim = 2} -> !spec.tensor<[2, T, T], f32>
  %equal = spec.map(%scores, %low) {function = "eq"} -> !spec.tensor<[2, T, T], i1>
  %none = spec.reduce(%equal) {function = "all", dims = [2], keep = true} -> !spec.tensor<[2, T, 1], i1>
  %guarded = spec.map(%none, %one, %softmax) {function = "where"} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%guarded, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: // raise-attention: a softmax at loc(unknown) is behind a where that is no guard of rows without keys
// CHECK: %y = spec.matmul(%guarded, %v) -> !spec.tensor<[2, T, 4], f32>

// -----

// Declines: ones instead of zeros are not a guard.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, 4, T], f32>, %v: !spec.tensor<[2, T, 4], f32>) {
  %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %product = spec.matmul(%q, %k) -> !spec.tensor<[2, T, T], f32>
  %weights = spec.softmax(%product) {dim = 2} -> !spec.tensor<[2, T, T], f32>
  %nan = spec.map(%weights, %weights) {function = "ne"} -> !spec.tensor<[2, T, T], i1>
  %guarded = spec.map(%nan, %one, %weights) {function = "where"} -> !spec.tensor<[2, T, T], f32>
  %y = spec.matmul(%guarded, %v) -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: // raise-attention: a softmax at loc(unknown) is behind a where that is no guard of rows without keys
// CHECK: spec.func @forward
// CHECK: spec.softmax
// CHECK-NOT: spec.attention

// -----

// Sinks: one more column of scores, without a value; the maximum that is subtracted first changes nothing.

spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[1, 2, 4, T], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %sinks: !spec.tensor<[2], f32>) {
  %scores = spec.matmul(%q, %k) -> !spec.tensor<[1, 2, T, T], f32>
  %apart = spec.reshape(%sinks) {shape = [1, 2, 1, 1]} -> !spec.tensor<[1, 2, 1, 1], f32>
  %column = spec.broadcast(%apart) {shape = [1, 2, "T", 1]} -> !spec.tensor<[1, 2, T, 1], f32>
  %joined = spec.concat(%scores, %column) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
  %most = spec.reduce(%joined) {function = "max", dims = [3], keep = true} -> !spec.tensor<[1, 2, T, 1], f32>
  %shifted = spec.map(%joined, %most) {function = "sub"} -> !spec.tensor<[1, 2, T, T+1], f32>
  %weights = spec.softmax(%shifted) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
  %kept = spec.slice(%weights) {dim = 3, start = 0, stop = "T"} -> !spec.tensor<[1, 2, T, T], f32>
  %y = spec.matmul(%kept, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: %sinks: !spec.tensor<[2], f32>) {
// CHECK: spec.attention({{%[0-9]+}}, {{%[0-9]+}}, {{%[0-9]+}}, %sinks) {scale = 1.0, extra = ["sinks"]} -> !spec.tensor<[2, T, 4], f32>

// -----

// Declines: the last column is not one sink for each head, but another number for each row.

spec.func @forward(%q: !spec.tensor<[1, 2, T, 4], f32>, %k: !spec.tensor<[1, 2, 4, T], f32>, %v: !spec.tensor<[1, 2, T, 4], f32>, %column: !spec.tensor<[1, 2, T, 1], f32>) {
  %scores = spec.matmul(%q, %k) -> !spec.tensor<[1, 2, T, T], f32>
  %joined = spec.concat(%scores, %column) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
  %weights = spec.softmax(%joined) {dim = 3} -> !spec.tensor<[1, 2, T, T+1], f32>
  %kept = spec.slice(%weights) {dim = 3, start = 0, stop = "T"} -> !spec.tensor<[1, 2, T, T], f32>
  %y = spec.matmul(%kept, %v) -> !spec.tensor<[1, 2, T, 4], f32>
  spec.return(%y)
}
// CHECK: %column: !spec.tensor<[1, 2, T, 1], f32>) {
// CHECK-NOT: spec.attention
// CHECK: spec.softmax

// -----

// A term of the key's token in front of a causal mask: one more feature of the keys, beside 1 / scale in the queries.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[2, T, 4], f32>, %v: !spec.tensor<[2, T, 4], f32>, %term: !spec.tensor<[2, T], f32>) {
  %keys = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%keys) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %ahead = spec.map(%keys, %rows) {function = "gt"} -> !spec.tensor<[T, T], i1>
  %low = spec.constant() {value = -1.0e+09, dtype = "f32"} -> !spec.tensor<[], f32>
  %across = spec.reshape(%term) {shape = [2, 1, "T"]} -> !spec.tensor<[2, 1, T], f32>
  %mask = spec.map(%ahead, %low, %across) {function = "where"} -> !spec.tensor<[2, T, T], f32>
  %y = spec.attention(%q, %k, %v, %mask) {scale = 0.5, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: [[TERM:%[0-9]+]] = spec.reshape(%term) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], f32>
// CHECK-NEXT: [[TWO:%[0-9]+]] = spec.constant() {value = 2.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: [[TWOS:%[0-9]+]] = spec.broadcast([[TWO]]) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], f32>
// CHECK-NEXT: [[QUERIES:%[0-9]+]] = spec.concat(%q, [[TWOS]]) {dim = 2} -> !spec.tensor<[2, T, 5], f32>
// CHECK-NEXT: [[KEYS:%[0-9]+]] = spec.concat(%k, [[TERM]]) {dim = 2} -> !spec.tensor<[2, T, 5], f32>
// CHECK-NEXT: [[ZERO:%[0-9]+]] = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: [[MASK:%[0-9]+]] = spec.map(%ahead, %low, [[ZERO]]) {function = "where"} -> !spec.tensor<[T, T], f32>
// CHECK-NEXT: %y = spec.attention([[QUERIES]], [[KEYS]], %v, [[MASK]]) {scale = 0.5, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>

// -----

// A term of each query head, where two of these share keys: each has keys of its own then.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %k: !spec.tensor<[1, T, 4], f32>, %term: !spec.tensor<[2, T], f32>) {
  %across = spec.reshape(%term) {shape = [2, 1, "T"]} -> !spec.tensor<[2, 1, T], f32>
  %y = spec.attention(%q, %k, %k, %across) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK: [[TERM:%[0-9]+]] = spec.reshape(%term) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], f32>
// CHECK: [[WIDE:%[0-9]+]] = spec.broadcast({{%[0-9]+}}) {shape = [1, 2, "T", 4]} -> !spec.tensor<[1, 2, T, 4], f32>
// CHECK-NEXT: [[REPEATED:%[0-9]+]] = spec.reshape([[WIDE]]) {shape = [2, "T", 4]} -> !spec.tensor<[2, T, 4], f32>
// CHECK: [[QUERIES:%[0-9]+]] = spec.concat(%q, {{%[0-9]+}}) {dim = 2} -> !spec.tensor<[2, T, 5], f32>
// CHECK-NEXT: [[KEYS:%[0-9]+]] = spec.concat([[REPEATED]], [[TERM]]) {dim = 2} -> !spec.tensor<[2, T, 5], f32>
// CHECK-NEXT: %y = spec.attention([[QUERIES]], [[KEYS]], [[REPEATED]]) {scale = 1.0} -> !spec.tensor<[2, T, 4], f32>

// -----

// Declines: a term of both tokens, which is no sum.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %term: !spec.tensor<[2, T], f32>) {
  %across = spec.reshape(%term) {shape = [2, 1, "T"]} -> !spec.tensor<[2, 1, T], f32>
  %down = spec.reshape(%term) {shape = [2, "T", 1]} -> !spec.tensor<[2, T, 1], f32>
  %mask = spec.map(%across, %down) {function = "mul"} -> !spec.tensor<[2, T, T], f32>
  %y = spec.attention(%q, %q, %q, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK-NOT: spec.concat
// CHECK: %y = spec.attention(%q, %q, %q, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>

// -----

// Declines: scores are capped before the term is added.

spec.func @forward(%q: !spec.tensor<[2, T, 4], f32>, %term: !spec.tensor<[2, T], f32>) {
  %across = spec.reshape(%term) {shape = [2, 1, "T"]} -> !spec.tensor<[2, 1, T], f32>
  %y = spec.attention(%q, %q, %q, %across) {scale = 1.0, softcap = 30.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}
// CHECK-NOT: spec.concat
// CHECK: %y = spec.attention(%q, %q, %q, %across) {scale = 1.0, softcap = 30.0, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>

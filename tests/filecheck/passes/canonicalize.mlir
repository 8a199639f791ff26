// RUN: forerun-opt %s --split-input-file -p canonicalize | filecheck %s

// Constants fold, neutral operands go, powers become products and roots.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %two = spec.constant() {value = 2.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %half = spec.constant() {value = 0.5, dtype = "f32"} -> !spec.tensor<[], f32>
  %one = spec.map(%two, %half) {function = "mul"} -> !spec.tensor<[], f32>
  %same = spec.map(%one, %x) {function = "mul"} -> !spec.tensor<[1, T], f32>
  %square = spec.map(%same, %two) {function = "pow"} -> !spec.tensor<[1, T], f32>
  %root = spec.map(%square, %half) {function = "pow"} -> !spec.tensor<[1, T], f32>
  %y = spec.map(%root) {function = "reciprocal"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
// CHECK-NEXT: %square = spec.map(%x, %x) {function = "mul"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: %y = spec.map(%square) {function = "rsqrt"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// One over a root is its reciprocal.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %root = spec.map(%x) {function = "sqrt"} -> !spec.tensor<[1, T], f32>
  %y = spec.map(%one, %root) {function = "div"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
// CHECK-NEXT: %y = spec.map(%x) {function = "rsqrt"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// A neutral operand stays where it widens, and true is not the number one.

spec.func @forward(%x: !spec.tensor<[1, 1], f32>, %b: !spec.tensor<[1, T], i1>) {
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %wide = spec.broadcast(%zero) {shape = [1, "T"]} -> !spec.tensor<[1, T], f32>
  %y = spec.map(%x, %wide) {function = "add"} -> !spec.tensor<[1, T], f32>
  spec.return(%y, %b)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, 1], f32>, %b: !spec.tensor<[1, T], i1>) {
// CHECK-NEXT: %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %wide = spec.broadcast(%zero) {shape = [1, "T"]} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: %y = spec.map(%x, %wide) {function = "add"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: spec.return(%y, %b)
// CHECK-NEXT: }

// -----

// Infinity is not folded into a constant.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %infinity = spec.map(%one, %zero) {function = "div"} -> !spec.tensor<[], f32>
  %y = spec.map(%x, %infinity) {function = "min"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
// CHECK-NEXT: %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %infinity = spec.map(%one, %zero) {function = "div"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %y = spec.map(%x, %infinity) {function = "min"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Views of views are one view; views that change nothing go; a transpose that moves only ones is a reshape.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
  %a = spec.reshape(%x) {shape = [1, "T", 2, 4]} -> !spec.tensor<[1, T, 2, 4], f32>
  %b = spec.transpose(%a) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
  %c = spec.transpose(%b) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, T, 2, 4], f32>
  %d = spec.reshape(%c) {shape = [1, "T", 8]} -> !spec.tensor<[1, T, 8], f32>
  %e = spec.cast(%d) {dtype = "f32"} -> !spec.tensor<[1, T, 8], f32>
  %f = spec.transpose(%e) {permutation = [1, 0, 2]} -> !spec.tensor<[T, 1, 8], f32>
  %g = spec.slice(%f) {dim = 2, start = 2, stop = 8, step = 1} -> !spec.tensor<[T, 1, 6], f32>
  %h = spec.slice(%g) {dim = 2, start = 1, stop = 4, step = 1} -> !spec.tensor<[T, 1, 3], f32>
  spec.return(%h)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
// CHECK-NEXT: %f = spec.reshape(%x) {shape = ["T", 1, 8]} -> !spec.tensor<[T, 1, 8], f32>
// CHECK-NEXT: %h = spec.slice(%f) {dim = 2, start = 3, stop = 6, step = 1} -> !spec.tensor<[T, 1, 3], f32>
// CHECK-NEXT: spec.return(%h)
// CHECK-NEXT: }

// -----

// A cast to a narrower type and back is kept: it rounds.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %half = spec.cast(%x) {dtype = "bf16"} -> !spec.tensor<[1, T], bf16>
  %y = spec.cast(%half) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
// CHECK-NEXT: %half = spec.cast(%x) {dtype = "bf16"} -> !spec.tensor<[1, T], bf16>
// CHECK-NEXT: %y = spec.cast(%half) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// A product with a fixed matrix is a linear layer, and a vector added to it its bias.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8, 6], f32>, %b: !spec.tensor<[6], f32>) {
  %product = spec.matmul(%x, %w) -> !spec.tensor<[1, T, 6], f32>
  %y = spec.map(%b, %product) {function = "add"} -> !spec.tensor<[1, T, 6], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[8, 6], f32>, %b: !spec.tensor<[6], f32>) {
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.transpose(%w) {permutation = [1, 0]} -> !spec.tensor<[6, 8], f32>
// CHECK-NEXT: %y = spec.linear(%x, [[F0]], %b) -> !spec.tensor<[1, T, 6], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Two transposes around a rotary embedding cancel; its tables are transposed instead.

spec.func @forward(%x: !spec.tensor<[1, T, 2, 4], f32>, %cos: !spec.tensor<[1, 3, T, 4], f32>) {
  %heads = spec.transpose(%x) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, 2, T, 4], f32>
  %table = spec.slice(%cos) {dim = 1, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 1, T, 4], f32>
  %turned = spec.rotary(%heads, %table, %table) -> !spec.tensor<[1, 2, T, 4], f32>
  %y = spec.transpose(%turned) {permutation = [0, 2, 1, 3]} -> !spec.tensor<[1, T, 2, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, T, 2, 4], f32>, %cos: !spec.tensor<[1, 3, T, 4], f32>) {
// CHECK-NEXT: %table = spec.slice(%cos) {dim = 1, start = 0, stop = 1, step = 1} -> !spec.tensor<[1, 1, T, 4], f32>
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.reshape(%table) {shape = [1, "T", 1, 4]} -> !spec.tensor<[1, T, 1, 4], f32>
// CHECK-NEXT: %y = spec.rotary(%x, [[F0]], [[F0]]) -> !spec.tensor<[1, T, 2, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// Look-ups need no cast, and a look-up of one known row is a slice.

spec.func @forward(%i: !spec.tensor<[1, T], i32>, %table: !spec.tensor<[16, 4], f32>) {
  %wide = spec.cast(%i) {dtype = "i64"} -> !spec.tensor<[1, T], i64>
  %rows = spec.gather(%table, %wide) -> !spec.tensor<[1, T, 4], f32>
  %last = spec.constant() {value = -1, dtype = "i64"} -> !spec.tensor<[], i64>
  %row = spec.gather(%table, %last) -> !spec.tensor<[4], f32>
  %y = spec.map(%rows, %row) {function = "mul"} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%i: !spec.tensor<[1, T], i32>, %table: !spec.tensor<[16, 4], f32>) {
// CHECK-NEXT: %rows = spec.gather(%table, %i) -> !spec.tensor<[1, T, 4], f32>
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.slice(%table) {dim = 0, start = 15, stop = 16, step = 1} -> !spec.tensor<[1, 4], f32>
// CHECK-NEXT: %row = spec.reshape([[F0]]) {shape = [4]} -> !spec.tensor<[4], f32>
// CHECK-NEXT: %y = spec.map(%rows, %row) {function = "mul"} -> !spec.tensor<[1, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// What is computed twice is computed once, what nobody reads goes, and a write to a state stays.

spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
spec.func @step(%k: !spec.tensor<[N, 1, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  %a = spec.map(%k) {function = "exp"} -> !spec.tensor<[N, 1, 4], f32>
  %b = spec.map(%k) {function = "exp"} -> !spec.tensor<[N, 1, 4], f32>
  %unused = spec.map(%b) {function = "sin"} -> !spec.tensor<[N, 1, 4], f32>
  spec.state_write @attention.0.keys(%a, %slots)
  spec.state_write @attention.0.values(%b, %slots)
  %y = spec.map(%a, %b) {function = "sub"} -> !spec.tensor<[N, 1, 4], f32>
  spec.return(%y)
}
// CHECK: spec.state @attention.0.keys {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK: spec.state @attention.0.values {per = "position", shape = [1, 4], dtype = "f32"}
// CHECK-NEXT: spec.func @step(%k: !spec.tensor<[N, 1, 4], f32>, %slots: !spec.tensor<[N], i32>) {
// CHECK-NEXT: %a = spec.map(%k) {function = "exp"} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.state_write @attention.0.keys(%a, %slots)
// CHECK-NEXT: spec.state_write @attention.0.values(%a, %slots)
// CHECK-NEXT: %y = spec.map(%a, %a) {function = "sub"} -> !spec.tensor<[N, 1, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// An integer divided by zero has no value, and stays.

spec.func @forward() {
  %zero = spec.constant() {value = 0, dtype = "i64"} -> !spec.tensor<[], i64>
  %rest = spec.map(%zero, %zero) {function = "remainder"} -> !spec.tensor<[], i64>
  spec.return(%rest)
}
// CHECK: %rest = spec.map(%zero, %zero) {function = "remainder"} -> !spec.tensor<[], i64>

// -----

// A sum over the number of its elements is a mean; over another number, or where the number is not known, it stays.

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>) {
  %eight = spec.constant() {value = 8.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %sum = spec.reduce(%x) {function = "sum", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
  %mean = spec.map(%sum, %eight) {function = "div"} -> !spec.tensor<[1, T, 1], f32>
  %along = spec.reduce(%x) {function = "sum", dims = [1]} -> !spec.tensor<[1, 8], f32>
  %part = spec.map(%along, %eight) {function = "div"} -> !spec.tensor<[1, 8], f32>
  spec.return(%mean, %part)
}
// CHECK: %mean = spec.reduce(%x) {function = "mean", dims = [2], keep = true} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %along = spec.reduce(%x) {function = "sum", dims = [1]} -> !spec.tensor<[1, 8], f32>
// CHECK-NEXT: %part = spec.map(%along, %eight) {function = "div"} -> !spec.tensor<[1, 8], f32>

// -----

// Transposes with a view between them that drops a dimension of one meet.

spec.func @forward(%x: !spec.tensor<[1, 4, T, 8], f32>) {
  %turned = spec.transpose(%x) {permutation = [0, 1, 3, 2]} -> !spec.tensor<[1, 4, 8, T], f32>
  %view = spec.reshape(%turned) {shape = [4, 8, "T"]} -> !spec.tensor<[4, 8, T], f32>
  %y = spec.transpose(%view) {permutation = [0, 2, 1]} -> !spec.tensor<[4, T, 8], f32>
  spec.return(%y)
}
// CHECK: spec.func @forward(%x: !spec.tensor<[1, 4, T, 8], f32>) {
// CHECK-NEXT: %y = spec.reshape(%x) {shape = [4, "T", 8]} -> !spec.tensor<[4, T, 8], f32>
// CHECK-NEXT: spec.return(%y)

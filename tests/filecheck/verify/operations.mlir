// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// The operation at fault stands between its neighbours, with a mark in front.

// CHECK: spec.map mixes ['f32', 'bf16'] in add:
// CHECK-NEXT: %one = spec.constant
// CHECK-NEXT: %a = spec.map
// CHECK-NEXT: %b = spec.cast
// CHECK-NEXT: {{^  }}> %sum = spec.map(%a, %b)
// CHECK-NEXT: %c = spec.map
// CHECK-NEXT: %d = spec.map
// CHECK-NEXT: spec.return(%d)

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %far = spec.constant() {value = 2.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %one = spec.constant() {value = 1.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %a = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
  %b = spec.cast(%x) {dtype = "bf16"} -> !spec.tensor<[1, T], bf16>
  %sum = spec.map(%a, %b) {function = "add"} -> !spec.tensor<[1, T], f32>
  %c = spec.map(%sum) {function = "sin"} -> !spec.tensor<[1, T], f32>
  %d = spec.map(%c) {function = "cos"} -> !spec.tensor<[1, T], f32>
  spec.return(%d)
}

// -----

// A result of another type than the shape rule gives.

// CHECK: spec.linear gives (!spec.tensor<[1, T, 6], f32>), not (!spec.tensor<[1, T, 7], f32>)

spec.func @forward(%x: !spec.tensor<[1, T, 8], f32>, %w: !spec.tensor<[6, 8], f32>) {
  %y = spec.linear(%x, %w) -> !spec.tensor<[1, T, 7], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.map uses a value before its definition, or one of another function:
// CHECK-NEXT: > %y = spec.map(%later)

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = "spec.map"(%later) {function = "exp"} : (!spec.tensor<[1, T], f32>) -> !spec.tensor<[1, T], f32>
  %later = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.iota has the dimension U, which no argument of its function has:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.iota() {size = "U"} -> !spec.tensor<[U], i64>
  spec.return(%y)
}

// -----

// Parameters that are missing, or that name no dimension.

// CHECK: spec.reduce needs the parameter 'function':

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.reduce(%x) {} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.slice has no dimension 5 in !spec.tensor<[1, T], f32>:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.slice(%x) {dim = 5, start = 0, stop = 1} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.softmax has no dimension 7 in !spec.tensor<[1, T], f32>:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.softmax(%x) {dim = 7} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.state needs the parameter 'dtype':

spec.state @s {per = "row", shape = [2, 4]}

// -----

// CHECK: spec.state must have a record per position, row or request, not per 'token':

spec.state @s {per = "token", shape = [2, 4], dtype = "f32"}

// -----

// CHECK: spec.state_write does not fit the state @s, whose records are !spec.tensor<[2, 6], f32>:

spec.state @s {per = "position", shape = [2, 6], dtype = "f32"}
spec.func @step(%k: !spec.tensor<[N, 2, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  spec.state_write @s(%k, %slots)
  spec.return()
}

// -----

// CHECK: spec.state_write writes @s, a state per row, which only spec.tree_recurrence writes:

spec.state @s {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%k: !spec.tensor<[N, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  spec.state_write @s(%k, %slots)
  spec.return()
}

// -----

// CHECK: spec.state_read reads @s, a state per row, which only spec.tree_recurrence reads:

spec.state @s {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%slots: !spec.tensor<[N], i32>) {
  %x = spec.state_read @s(%slots) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
  spec.return(%x)
}

// -----

// CHECK: spec.state_read does not fit the state @s, whose records are !spec.tensor<[8], f32>:

spec.state @s {per = "request", shape = [8], dtype = "f32"}
spec.func @step(%slots: !spec.tensor<[N], i32>) {
  %x = spec.state_read @s(%slots) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
  spec.return(%x)
}

// -----

// CHECK: spec.state_write writes @s, which @step reads; write it in another entry:

spec.state @s {per = "request", shape = [4], dtype = "f32"}
spec.func @step(%slots: !spec.tensor<[N], i32>) {
  %x = spec.state_read @s(%slots) {shape = [4], dtype = "f32"} -> !spec.tensor<[N, 4], f32>
  spec.state_write @s(%x, %slots)
  spec.return(%x)
}

// -----

// CHECK: spec.tree_attention reads @s, a state per row, but needs one per position:

spec.state @s {per = "row", shape = [2, 4], dtype = "f32"}
spec.func @step(%q: !spec.tensor<[N, 2, 4], f32>, %rows: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %tables: !spec.tensor<[S, B], i32>) {
  %y = spec.tree_attention @s(%q, %rows, %rows, %rows, %paths, %tables) {values = @s, block = 16, value_dim = 4, scale = 0.5} -> !spec.tensor<[N, 2, 4], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.tree_attention does not fit the states @c.keys of !spec.tensor<[2, 4], f32> and @c.values of !spec.tensor<[2, 6], f32>:

spec.state @c.keys {per = "position", shape = [2, 4], dtype = "f32"}
spec.state @c.values {per = "position", shape = [2, 6], dtype = "f32"}
spec.func @step(%q: !spec.tensor<[N, 3, 4], f32>, %rows: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %tables: !spec.tensor<[S, B], i32>) {
  %y = spec.tree_attention @c.keys(%q, %rows, %rows, %rows, %paths, %tables) {values = @c.values, block = 16, value_dim = 6, scale = 0.5} -> !spec.tensor<[N, 3, 6], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.map has no function 'gellu'; use gelu:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.map(%x) {function = "gellu"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.map has no function 'frobnicate'; see docs/ir.md for those it has:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.map(%x) {function = "frobnicate"} -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.reduce takes i1 for any, not !spec.tensor<[3, 2], f32>:

spec.func @forward(%x: !spec.tensor<[3, 2], f32>) {
  %y = spec.reduce(%x) {function = "any", dims = [1]} -> !spec.tensor<[3], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.reduce names a dimension twice in [1, 1]:

spec.func @forward(%x: !spec.tensor<[3, 2], f32>) {
  %y = spec.reduce(%x) {function = "sum", dims = [1, 1]} -> !spec.tensor<[3], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.constant has the value 300, which is not a number of i8:

spec.func @forward() {
  %y = spec.constant() {value = 300, dtype = "i8"} -> !spec.tensor<[], i8>
  spec.return(%y)
}

// -----

// CHECK: spec.state needs records of at most 1099511627776 numbers, not [1099511627776, 2]:

spec.state @s {per = "row", shape = [1099511627776, 2], dtype = "f32"}

// -----

// CHECK: spec.attention has the mask !spec.tensor<[], i64>, which does not fit scores of [2, 'T', 'T']:

spec.func @forward(%x: !spec.tensor<[2, T, 4], f32>, %m: !spec.tensor<[], i64>) {
  %y = spec.attention(%x, %x, %x, %m) {scale = 0.5, extra = ["mask"]} -> !spec.tensor<[2, T, 4], f32>
  spec.return(%y)
}

// -----

// What may stand where.

// CHECK: builtin.module cannot stand in a function:
// CHECK-NEXT: > builtin.module

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  builtin.module {
  }
  spec.return(%x)
}

// -----

// CHECK: builtin.unrealized_conversion_cast cannot stand in a function:

spec.func @constants() {
  %y = "builtin.unrealized_conversion_cast"() : () -> i32
  "spec.return"(%y) : (i32) -> ()
}
spec.weight @derived.0 {shape = [8], dtype = "f32", derived = 0}

// -----

// CHECK: spec.func cannot stand in a function:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  spec.func @inner() {
    spec.return()
  }
  spec.return(%x)
}

// -----

// CHECK: spec.state cannot stand in a function:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  spec.state @s {per = "row", shape = [2, 4], dtype = "f32"}
  spec.return(%x)
}

// -----

// CHECK: spec.return must be the last operation of a body:
// CHECK-NEXT: > spec.return(%x)

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  spec.return(%x)
  spec.return(%x)
}

// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// CHECK: spec.parameter reads the weight @missing, which the module does not declare:
// CHECK-NEXT: > %w = spec.parameter @missing()

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %w = spec.parameter @missing() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  spec.return(%w)
}

// -----

// CHECK: spec.parameter reads @w as !spec.tensor<[8], f32>, not the declared !spec.tensor<[9], f32>:

spec.weight @w {shape = [9], dtype = "f32"}
spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %w = spec.parameter @w() {shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  spec.return(%w)
}

// -----

// CHECK: spec.state_write uses the state @attention.0.keys, which the module does not declare:
// CHECK-NEXT: > spec.state_write @attention.0.keys(%k, %slots)

spec.func @step(%k: !spec.tensor<[N, 1, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  spec.state_write @attention.0.keys(%k, %slots)
  spec.return(%k)
}

// -----

// CHECK: the symbol @w is defined twice; rename one.

spec.weight @w {shape = [9], dtype = "f32"}
spec.state @w {per = "position", shape = [1, 4], dtype = "f32"}

// -----

// CHECK: weight @derived.0 is not a result of @constants of type !spec.tensor<[8], f32>; derive it there.

spec.weight @derived.0 {shape = [8], dtype = "f32", derived = 0}

// -----

// CHECK: weight @derived.0 is not a result of @constants of type !spec.tensor<[8], f32>; derive it there.

spec.weight @derived.0 {shape = [8], dtype = "f32", derived = 0}
spec.func @constants() {
  %range = spec.iota() {size = 8} -> !spec.tensor<[8], i64>
  spec.return(%range)
}

// -----

// CHECK: spec.iota cannot stand at the top of a module; put it into a spec.func.

%range = spec.iota() {size = 8} -> !spec.tensor<[8], i64>

// -----

// CHECK: weight @w is stored as f12, an unknown weight dtype; use one of bf16

spec.weight @w {shape = [8, 8], dtype = "f32", storage = "f12"}

// -----

// CHECK: weight @w is stored as bf16, but only float32 matrices can be.

spec.weight @w {shape = [8], dtype = "f32", storage = "bf16"}

// -----

// CHECK: spec.weight needs the parameter 'symbol':

"spec.weight"() <{shape = [8], dtype = "f32"}> : () -> ()

// -----

// CHECK: spec.func needs the parameter 'symbol'.

"spec.func"() ({
  "spec.return"() : () -> ()
}) : () -> ()

// -----

// CHECK: spec.func takes a nonempty symbol as the parameter 'symbol', not @"".

spec.func @""() {
  spec.return()
}

// -----

// CHECK: spec.parameter takes a nonempty symbol as the parameter 'symbol', not @w::@inner:

spec.func @forward() {
  %w = spec.parameter() {symbol = @w::@inner, shape = [8], dtype = "f32"} -> !spec.tensor<[8], f32>
  spec.return(%w)
}

// -----

// CHECK: the symbol @forward is given twice; leave it out of the braces

spec.func @forward() attributes {symbol = @backward} {
  spec.return()
}

// -----

// CHECK: the symbol @s is given twice; leave it out of the braces

spec.state @s {symbol = @s, per = "row", shape = [4], dtype = "f32"}

// -----

// CHECK: the symbol @s is given twice; leave it out of the braces

spec.func @step(%x: !spec.tensor<[N, 4], f32>, %slots: !spec.tensor<[N], i32>) {
  spec.state_write @s(%x, %slots) {symbol = @s}
  spec.return()
}

// -----

// CHECK: weight @half is no part of a weight @w; declare one that has it.

spec.weight @w {shape = [4, 8], dtype = "f32"}
spec.weight @half {shape = [2, 8], dtype = "f32", source = "w", part = [0, 3, 5]}

// -----

// CHECK: weight @half is no part of a weight @v; declare one that has it.

spec.weight @half {shape = [2, 8], dtype = "f32", source = "v", part = [0, 0, 2]}

// -----

// CHECK: has the shape [2, 8], which the part [0, 0, 3] does not give

spec.weight @w {shape = [4, 8], dtype = "f32"}
spec.weight @half {shape = [2, 8], dtype = "f32", source = "w", part = [0, 0, 3]}

// -----

// CHECK: needs a source and a part of it, or neither

spec.weight @half {shape = [2, 8], dtype = "f32", source = "w"}

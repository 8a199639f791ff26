// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// CHECK: @forward does not end in spec.return; add one.

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = spec.map(%x) {function = "exp"} -> !spec.tensor<[1, T], f32>
}

// -----

// CHECK: spec.kernel does not end in spec.yield:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    %out = spec.map(%in) {function = "exp"} -> !spec.tensor<[N], f32>
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel has operands that do not fit its body's arguments:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], bf16>):
    spec.yield(%in)
  } -> !spec.tensor<[N], bf16>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel has results of other types than it yields:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], bf16>
  spec.return(%y)
}

// -----

// A kernel reads its operands and nothing else.

// CHECK: spec.map uses a value before its definition, or one of another function:
// CHECK-NEXT: > %out = spec.map(%x)

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    %out = spec.map(%x) {function = "exp"} -> !spec.tensor<[N], f32>
    spec.yield(%out)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: @forward has argument 0 of type i32; give it a !spec.tensor type.

spec.func @forward(%x: i32) {
  spec.return()
}

// -----

// CHECK: spec.kernel has no kind 'foo', only linear, head, attention, recurrence, topk, row_wise, ancestors:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "foo"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel needs a stream of at least 0 for its first result, not -1:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "linear", stream = -1} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel needs an offset of at least 0 for each result, not [0, 64]:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "linear", offsets = [0, 64]} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel belongs to branch 9, but @step has 1:

spec.func @step(%x: !spec.tensor<[N], f32>) attributes {branches = [[0, "attention"]]} {
  %y = spec.kernel(%x) {kind = "linear", branch = 9} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    spec.yield(%in)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.kernel stands in another kernel, but is one launch by itself:

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %y = spec.kernel(%x) {kind = "row_wise"} {
  ^bb0(%in: !spec.tensor<[N], f32>):
    %z = spec.kernel(%in) {kind = "row_wise"} {
    ^bb0(%inner: !spec.tensor<[N], f32>):
      spec.yield(%inner)
    } -> !spec.tensor<[N], f32>
    spec.yield(%z)
  } -> !spec.tensor<[N], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.tree_recurrence does not have one block as its body:

spec.func @step(%rows: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>) {
  %y = spec.tree_recurrence @s(%rows, %rows, %rows) -> !spec.tensor<[N, 4], f32>
  spec.return(%y)
}

// -----

// CHECK: spec.map has a body, which it does not take:

spec.func @forward(%x: !spec.tensor<[1, T], f32>) {
  %y = "spec.map"(%x) <{function = "neg"}> ({}) : (!spec.tensor<[1, T], f32>) -> !spec.tensor<[1, T], f32>
  spec.return(%y)
}

// -----

// CHECK: @forward has the arena -8; give a number of at least 0.

spec.func @forward() attributes {arena = -8} {
  spec.return()
}

// -----

// A function that cannot be printed as it should be is shown all the same.

// CHECK: spec.state needs the parameter 'per':
// CHECK: spec.func @forward()

spec.state @s
spec.func @forward() {
  spec.return()
^bb1:
  spec.return()
}

// -----

// CHECK: spec.receive belongs to branch 1, but @step has 1:

spec.func @step() attributes {branches = [[0, "feed_forward"]]} {
  %x = spec.receive() {payload = "x", shape = ["N", 4], dtype = "f32", branch = 1} -> !spec.tensor<[N, 4], f32>
  spec.return(%x)
}

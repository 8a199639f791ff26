// RUN: not forerun-opt %s --split-input-file 2>&1 | filecheck %s

// CHECK: spec.tree_recurrence uses @sum, a state per position, but needs one per row:

spec.state @sum {per = "position", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %own) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence does not fit the state @sum, whose records are !spec.tensor<[8], f32>:

spec.state @sum {per = "row", shape = [8], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %own) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence has a body with arguments (!spec.tensor<[4], f32>), not its record and inputs (!spec.tensor<[4], f32>, !spec.tensor<[4], f32>):

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>):
    spec.yield(%before, %before)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence has a body with arguments (!spec.tensor<[4], f32>, !spec.tensor<[N, 4], f32>), not its record and inputs

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[N, 4], f32>):
    spec.yield(%before, %before)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence has a body over the named dimension D; give it fixed sizes:

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %paths) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[D], i32>):
    spec.yield(%before, %before)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence gives (!spec.tensor<[N, 4], f32>), not (!spec.tensor<[N, 5], f32>):

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %own) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 5], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence does not end in a spec.yield of a record:

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %x: !spec.tensor<[N, 4], f32>) {
  spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    spec.yield()
  }
  spec.return(%x)
}

// -----

// CHECK: spec.tree_recurrence needs rows described by i64 or i32:

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], f32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %parents, %parents, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    spec.yield(%before, %before)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence needs parents, records and an order [N], not !spec

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %paths, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %own) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.map uses a value before its definition, or one of another function

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %x) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.state_write stands in the body of a recurrence, which may only compute values:

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %whole = spec.cast(%x) {dtype = "i32"} -> !spec.tensor<[N, 4], i32>
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %whole) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], i32>):
    spec.state_write @sum(%before, %own)
    spec.yield(%before, %before)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: spec.tree_recurrence is the second recurrence over @sum in @step:

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %first = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%p: !spec.tensor<[4], f32>, %o: !spec.tensor<[4], f32>):
    spec.yield(%o, %o)
  } -> !spec.tensor<[N, 4], f32>
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.map(%before, %own) {function = "add"} -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: @step has the argument %order of type !spec.tensor<[M], i32>; give it !spec.tensor<[N], i32>.

spec.func @step(%tokens: !spec.tensor<[N], i32>, %order: !spec.tensor<[M], i32>) {
  spec.return(%tokens)
}

// -----

// CHECK: spec.tree_recurrence needs the parameter 'symbol':
// CHECK-NEXT: > %after = spec.tree_recurrence(%before, %own)

spec.state @sum {per = "row", shape = [4], dtype = "f32"}
spec.func @step(%parents: !spec.tensor<[N], i32>, %records: !spec.tensor<[N], i32>, %order: !spec.tensor<[N], i32>, %paths: !spec.tensor<[N, D], i32>, %x: !spec.tensor<[N, 4], f32>) {
  %sum = spec.tree_recurrence @sum(%parents, %records, %order, %x) {} {
  ^bb0(%before: !spec.tensor<[4], f32>, %own: !spec.tensor<[4], f32>):
    %after = spec.tree_recurrence(%before, %own) -> !spec.tensor<[4], f32>
    spec.yield(%after, %after)
  } -> !spec.tensor<[N, 4], f32>
  spec.return(%sum)
}

// -----

// CHECK: 99999999999999999999999 is out of range for type i64

spec.weight @w {shape = [99999999999999999999999], dtype = "f32"}

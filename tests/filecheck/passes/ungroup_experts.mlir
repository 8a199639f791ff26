// RUN: forerun-opt %s --split-input-file -p ungroup-experts | filecheck %s

// Rows of tokens and their choices are sorted by expert, multiplied by a row of a weight, and put back: they may stay.

spec.func @forward(%x: !spec.tensor<[T, 4], f32>, %scores: !spec.tensor<[T, 3], f32>, %w: !spec.tensor<[3, 4], f32>) {
  %best, %ids = spec.topk(%scores) {k = 2, index_dtype = "i64"} -> !spec.tensor<[T, 2], f32>, !spec.tensor<[T, 2], i64>
  %0 = spec.reshape(%ids) {shape = ["2*T"]} -> !spec.tensor<[2*T], i64>
  %1 = spec.reshape(%0) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %2 = spec.reshape(%0) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %3 = spec.iota() {size = "2*T"} -> !spec.tensor<[2*T], i64>
  %4 = spec.reshape(%3) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %5 = spec.reshape(%3) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %6 = spec.map(%4, %5) {function = "lt"} -> !spec.tensor<[2*T, 2*T], i1>
  %7 = spec.map(%1, %2) {function = "lt"} -> !spec.tensor<[2*T, 2*T], i1>
  %8 = spec.map(%1, %2) {function = "eq"} -> !spec.tensor<[2*T, 2*T], i1>
  %9 = spec.map(%8, %6) {function = "and"} -> !spec.tensor<[2*T, 2*T], i1>
  %10 = spec.map(%7, %9) {function = "or"} -> !spec.tensor<[2*T, 2*T], i1>
  %11 = spec.cast(%10) {dtype = "i64"} -> !spec.tensor<[2*T, 2*T], i64>
  %12 = spec.reduce(%11) {function = "sum", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>
  %13 = spec.reshape(%12) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %14 = spec.reshape(%3) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %15 = spec.map(%13, %14) {function = "eq"} -> !spec.tensor<[2*T, 2*T], i1>
  %16 = spec.cast(%15) {dtype = "i64"} -> !spec.tensor<[2*T, 2*T], i64>
  %17 = spec.reduce(%16) {function = "argmax", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>
  %18 = spec.gather(%0, %17) -> !spec.tensor<[2*T], i64>
  %19 = spec.constant() {value = 2, dtype = "i64"} -> !spec.tensor<[], i64>
  %20 = spec.map(%17, %19) {function = "floor_div"} -> !spec.tensor<[2*T], i64>
  %21 = spec.gather(%x, %20) -> !spec.tensor<[2*T, 4], f32>
  %22 = spec.gather(%0, %17) -> !spec.tensor<[2*T], i64>
  %23 = spec.gather(%w, %22) -> !spec.tensor<[2*T, 4], f32>
  %24 = spec.map(%21, %23) {function = "mul"} -> !spec.tensor<[2*T, 4], f32>
  %25 = spec.iota() {size = "2*T"} -> !spec.tensor<[2*T], i64>
  %26 = spec.iota() {size = "2*T"} -> !spec.tensor<[2*T], i64>
  %27 = spec.reshape(%17) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %28 = spec.reshape(%26) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %29 = spec.map(%27, %28) {function = "eq"} -> !spec.tensor<[2*T, 2*T], i1>
  %30 = spec.cast(%29) {dtype = "i64"} -> !spec.tensor<[2*T, 2*T], i64>
  %31 = spec.reduce(%30) {function = "argmax", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>
  %32 = spec.gather(%25, %31) -> !spec.tensor<[2*T], i64>
  %33 = spec.reduce(%29) {function = "any", dims = [1], keep = false} -> !spec.tensor<[2*T], i1>
  %34 = spec.map(%33, %32, %25) {function = "where"} -> !spec.tensor<[2*T], i64>
  %35 = spec.gather(%24, %34) -> !spec.tensor<[2*T, 4], f32>
  %36 = spec.reshape(%35) {shape = ["T", 2, 4]} -> !spec.tensor<[T, 2, 4], f32>
  spec.return(%36)
}
// CHECK: // ungroup-experts: 1 values of sorted rows are computed in their own order
// CHECK: %0 = spec.reshape(%ids) {shape = ["2*T"]} -> !spec.tensor<[2*T], i64>
// CHECK-NEXT: %1 = spec.reshape(%x) {shape = ["T", 1, 4]} -> !spec.tensor<[T, 1, 4], f32>
// CHECK-NEXT: %2 = spec.broadcast(%1) {shape = ["T", 2, 4]} -> !spec.tensor<[T, 2, 4], f32>
// CHECK-NEXT: %3 = spec.reshape(%2) {shape = ["2*T", 4]} -> !spec.tensor<[2*T, 4], f32>
// CHECK-NEXT: %4 = spec.gather(%w, %0) -> !spec.tensor<[2*T, 4], f32>
// CHECK-NEXT: %5 = spec.map(%3, %4) {function = "mul"} -> !spec.tensor<[2*T, 4], f32>
// CHECK-NEXT: %6 = spec.reshape(%5) {shape = ["T", 2, 4]} -> !spec.tensor<[T, 2, 4], f32>
// CHECK-NEXT: spec.return(%6)

// -----

// Declines: the rows are looked up in the order of the sort once more, which does not put them back.

spec.func @forward(%x: !spec.tensor<[T, 4], f32>, %scores: !spec.tensor<[T, 3], f32>, %w: !spec.tensor<[3, 4], f32>) {
  %best, %ids = spec.topk(%scores) {k = 2, index_dtype = "i64"} -> !spec.tensor<[T, 2], f32>, !spec.tensor<[T, 2], i64>
  %0 = spec.reshape(%ids) {shape = ["2*T"]} -> !spec.tensor<[2*T], i64>
  %1 = spec.reshape(%0) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %2 = spec.reshape(%0) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %3 = spec.iota() {size = "2*T"} -> !spec.tensor<[2*T], i64>
  %4 = spec.reshape(%3) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %5 = spec.reshape(%3) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %6 = spec.map(%4, %5) {function = "lt"} -> !spec.tensor<[2*T, 2*T], i1>
  %7 = spec.map(%1, %2) {function = "lt"} -> !spec.tensor<[2*T, 2*T], i1>
  %8 = spec.map(%1, %2) {function = "eq"} -> !spec.tensor<[2*T, 2*T], i1>
  %9 = spec.map(%8, %6) {function = "and"} -> !spec.tensor<[2*T, 2*T], i1>
  %10 = spec.map(%7, %9) {function = "or"} -> !spec.tensor<[2*T, 2*T], i1>
  %11 = spec.cast(%10) {dtype = "i64"} -> !spec.tensor<[2*T, 2*T], i64>
  %12 = spec.reduce(%11) {function = "sum", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>
  %13 = spec.reshape(%12) {shape = [1, "2*T"]} -> !spec.tensor<[1, 2*T], i64>
  %14 = spec.reshape(%3) {shape = ["2*T", 1]} -> !spec.tensor<[2*T, 1], i64>
  %15 = spec.map(%13, %14) {function = "eq"} -> !spec.tensor<[2*T, 2*T], i1>
  %16 = spec.cast(%15) {dtype = "i64"} -> !spec.tensor<[2*T, 2*T], i64>
  %17 = spec.reduce(%16) {function = "argmax", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>
  %18 = spec.gather(%0, %17) -> !spec.tensor<[2*T], i64>
  %19 = spec.constant() {value = 2, dtype = "i64"} -> !spec.tensor<[], i64>
  %20 = spec.map(%17, %19) {function = "floor_div"} -> !spec.tensor<[2*T], i64>
  %21 = spec.gather(%x, %20) -> !spec.tensor<[2*T, 4], f32>
  %22 = spec.gather(%0, %17) -> !spec.tensor<[2*T], i64>
  %23 = spec.gather(%w, %22) -> !spec.tensor<[2*T, 4], f32>
  %24 = spec.map(%21, %23) {function = "mul"} -> !spec.tensor<[2*T, 4], f32>
  %35 = spec.gather(%24, %17) -> !spec.tensor<[2*T, 4], f32>
  %36 = spec.reshape(%35) {shape = ["T", 2, 4]} -> !spec.tensor<[T, 2, 4], f32>
  spec.return(%36)
}
// CHECK: spec.reduce(%{{.*}}) {function = "argmax", dims = [1], keep = false} -> !spec.tensor<[2*T], i64>

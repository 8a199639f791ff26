// RUN: forerun-opt %s --split-input-file -p tabulate-positions{max_length=32} | filecheck %s

// A causal mask computed from positions goes; a value of positions becomes a table that is looked up.

spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%positions) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %mask = spec.map(%positions, %rows) {function = "le"} -> !spec.tensor<[T, T], i1>
  %angles = spec.cast(%rows) {dtype = "f32"} -> !spec.tensor<[T, 1], f32>
  %wave = spec.map(%angles) {function = "sin"} -> !spec.tensor<[T, 1], f32>
  %tokens = spec.cast(%input_ids) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
  %column = spec.reshape(%tokens) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
  %x = spec.map(%column, %wave) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 1], f32>
  spec.return(%y)
}
// CHECK: // tabulate-positions: a mask is causal
// CHECK: spec.weight @derived.0 {shape = [32, 1], dtype = "f32", derived = 0}
// CHECK-NEXT: spec.func @constants() {
// CHECK-NEXT: %positions = spec.iota() {size = 32} -> !spec.tensor<[32], i64>
// CHECK-NEXT: %rows = spec.reshape(%positions) {shape = [32, 1]} -> !spec.tensor<[32, 1], i64>
// CHECK-NEXT: %angles = spec.cast(%rows) {dtype = "f32"} -> !spec.tensor<[32, 1], f32>
// CHECK-NEXT: %wave = spec.map(%angles) {function = "sin"} -> !spec.tensor<[32, 1], f32>
// CHECK-NEXT: spec.return(%wave)
// CHECK-NEXT: }
// CHECK-NEXT: spec.func @forward(%input_ids: !spec.tensor<[1, T], i64>) {
// CHECK-NEXT: %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
// CHECK-NEXT: %wave = spec.parameter @derived.0() {shape = [32, 1], dtype = "f32"} -> !spec.tensor<[32, 1], f32>
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.gather(%wave, %positions) -> !spec.tensor<[T, 1], f32>
// CHECK-NEXT: %tokens = spec.cast(%input_ids) {dtype = "f32"} -> !spec.tensor<[1, T], f32>
// CHECK-NEXT: %column = spec.reshape(%tokens) {shape = [1, "T", 1]} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %x = spec.map(%column, [[F0]]) {function = "add"} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: %y = spec.attention(%x, %x, %x) {scale = 1.0, causal = true} -> !spec.tensor<[1, T, 1], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// A sliding window becomes the first visible position of each row.

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%positions) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %behind = spec.map(%rows, %positions) {function = "sub"} -> !spec.tensor<[T, T], i64>
  %width = spec.constant() {value = 8, dtype = "i64"} -> !spec.tensor<[], i64>
  %near = spec.map(%behind, %width) {function = "lt"} -> !spec.tensor<[T, T], i1>
  %before = spec.map(%positions, %rows) {function = "le"} -> !spec.tensor<[T, T], i1>
  %mask = spec.map(%near, %before) {function = "and"} -> !spec.tensor<[T, T], i1>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}
// CHECK: // tabulate-positions: a mask is a sliding window of 8
// CHECK: spec.weight @derived.0 {shape = [32], dtype = "i64", derived = 0}
// CHECK-NEXT: spec.func @constants() {
// CHECK-NEXT: [[C0:%[0-9]+]] = spec.iota() {size = 32} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C1:%[0-9]+]] = spec.constant() {value = 8, dtype = "i64"} -> !spec.tensor<[], i64>
// CHECK-NEXT: [[C2:%[0-9]+]] = spec.map([[C0]], [[C1]]) {function = "sub"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C3:%[0-9]+]] = spec.constant() {value = 1, dtype = "i64"} -> !spec.tensor<[], i64>
// CHECK-NEXT: [[C4:%[0-9]+]] = spec.map([[C2]], [[C3]]) {function = "floor_div"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C5:%[0-9]+]] = spec.map([[C4]], [[C3]]) {function = "mul"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C6:%[0-9]+]] = spec.map([[C5]], [[C3]]) {function = "add"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C7:%[0-9]+]] = spec.constant() {value = 0, dtype = "i64"} -> !spec.tensor<[], i64>
// CHECK-NEXT: [[C8:%[0-9]+]] = spec.map([[C6]], [[C7]]) {function = "max"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: spec.return([[C8]])
// CHECK-NEXT: }
// CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
// CHECK-NEXT: %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
// CHECK-NEXT: %first = spec.parameter @derived.0() {shape = [32], dtype = "i64"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[F0:%[0-9]+]] = spec.gather(%first, %positions) -> !spec.tensor<[T], i64>
// CHECK-NEXT: %y = spec.attention(%x, %x, %x, [[F0]]) {scale = 1.0, extra = ["first"], causal = true} -> !spec.tensor<[1, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

// -----

// A bias that grows with the distance becomes a table of distances.

spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
  %positions = spec.iota() {size = "T"} -> !spec.tensor<[T], i64>
  %rows = spec.reshape(%positions) {shape = ["T", 1]} -> !spec.tensor<[T, 1], i64>
  %ahead = spec.map(%positions, %rows) {function = "sub"} -> !spec.tensor<[T, T], i64>
  %number = spec.cast(%ahead) {dtype = "f32"} -> !spec.tensor<[T, T], f32>
  %slope = spec.constant() {value = 0.25, dtype = "f32"} -> !spec.tensor<[], f32>
  %bias = spec.map(%number, %slope) {function = "mul"} -> !spec.tensor<[T, T], f32>
  %before = spec.map(%positions, %rows) {function = "le"} -> !spec.tensor<[T, T], i1>
  %hidden = spec.constant() {value = 0xfff0000000000000 : f64, dtype = "f32"} -> !spec.tensor<[], f32>
  %mask = spec.map(%before, %bias, %hidden) {function = "where"} -> !spec.tensor<[T, T], f32>
  %y = spec.attention(%x, %x, %x, %mask) {scale = 1.0, extra = ["mask"]} -> !spec.tensor<[1, T, 4], f32>
  spec.return(%y)
}
// CHECK: // tabulate-positions: a mask is causal with a bias by distance
// CHECK: spec.weight @derived.0 {shape = [1, 32], dtype = "f32", derived = 0}
// CHECK-NEXT: spec.func @constants() {
// CHECK-NEXT: %slope = spec.constant() {value = 0.25, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: %positions = spec.iota() {size = 32} -> !spec.tensor<[32], i64>
// CHECK-NEXT: %rows = spec.reshape(%positions) {shape = [32, 1]} -> !spec.tensor<[32, 1], i64>
// CHECK-NEXT: [[C0:%[0-9]+]] = spec.slice(%rows) {dim = 0, start = 31, stop = 32, step = 1} -> !spec.tensor<[1, 1], i64>
// CHECK-NEXT: [[C1:%[0-9]+]] = spec.map(%positions, [[C0]]) {function = "sub"} -> !spec.tensor<[1, 32], i64>
// CHECK-NEXT: [[C2:%[0-9]+]] = spec.cast([[C1]]) {dtype = "f32"} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: [[C3:%[0-9]+]] = spec.map([[C2]], %slope) {function = "mul"} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: [[C4:%[0-9]+]] = spec.slice([[C3]]) {dim = 1, start = 31, stop = 32, step = 1} -> !spec.tensor<[1, 1], f32>
// CHECK-NEXT: [[C5:%[0-9]+]] = spec.map([[C3]], [[C4]]) {function = "sub"} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: [[C6:%[0-9]+]] = spec.constant() {value = 31, dtype = "i64"} -> !spec.tensor<[], i64>
// CHECK-NEXT: [[C7:%[0-9]+]] = spec.map([[C6]], %positions) {function = "sub"} -> !spec.tensor<[32], i64>
// CHECK-NEXT: [[C8:%[0-9]+]] = spec.transpose([[C5]]) {permutation = [1, 0]} -> !spec.tensor<[32, 1], f32>
// CHECK-NEXT: [[C9:%[0-9]+]] = spec.gather([[C8]], [[C7]]) -> !spec.tensor<[32, 1], f32>
// CHECK-NEXT: [[C10:%[0-9]+]] = spec.transpose([[C9]]) {permutation = [1, 0]} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: [[C11:%[0-9]+]] = spec.constant() {value = -10000.0, dtype = "f32"} -> !spec.tensor<[], f32>
// CHECK-NEXT: [[C12:%[0-9]+]] = spec.map([[C10]], [[C11]]) {function = "max"} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: spec.return([[C12]])
// CHECK-NEXT: }
// CHECK-NEXT: spec.func @forward(%x: !spec.tensor<[1, T, 4], f32>) {
// CHECK-NEXT: %bias = spec.parameter @derived.0() {shape = [1, 32], dtype = "f32"} -> !spec.tensor<[1, 32], f32>
// CHECK-NEXT: %y = spec.attention(%x, %x, %x, %bias) {scale = 1.0, extra = ["bias"], causal = true, bias_by = "distance"} -> !spec.tensor<[1, T, 4], f32>
// CHECK-NEXT: spec.return(%y)
// CHECK-NEXT: }

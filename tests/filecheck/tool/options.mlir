// RUN: forerun-opt %s -p canonicalize,plan-memory{max_rows=64} --print-between-passes | filecheck %s
// RUN: forerun-opt %s -p canonicalize --time 2>&1 | filecheck %s --check-prefix TIME
// RUN: forerun-opt --list | filecheck %s --check-prefix LIST
// RUN: not forerun-opt %s -p tabulate 2>&1 | filecheck %s --check-prefix PASS
// RUN: not forerun-opt %s -p plan-memory{rows=3} 2>&1 | filecheck %s --check-prefix OPTION
// RUN: not forerun-opt %s -p plan-memory{max_rows=many} 2>&1 | filecheck %s --check-prefix OPTION
// RUN: not forerun-opt %s -p plan-memory{ 2>&1 | filecheck %s --check-prefix LANGUAGE
// RUN: not forerun-opt %s -p sequence-axis 2>&1 | filecheck %s --check-prefix FUNCTION
// RUN: not forerun-opt missing.mlir 2>&1 | filecheck %s --check-prefix FILE

spec.func @step(%x: !spec.tensor<[N], f32>) {
  %unused = spec.map(%x) {function = "exp"} -> !spec.tensor<[N], f32>
  spec.return(%x)
}

// CHECK: // pass canonicalize
// CHECK-NEXT: // operations: 2 before, 1 after
// CHECK-NEXT: // time: {{[0-9.]+}} ms
// CHECK-NEXT: // -1 spec.map exp
// CHECK-NEXT: builtin.module
// CHECK: // pass plan-memory
// CHECK: // plan-memory: 0 buffers, 0 bytes, in an arena of 0 bytes
// CHECK-NEXT: builtin.module

// TIME: {{[0-9.]+}} ms  canonicalize (2 -> 1 operations)
// TIME: {{[0-9.]+}} ms  in all

// LIST: canonicalize
// LIST: plan-memory places every buffer of a step in one arena, by lifetime.
// LIST-NEXT: max_rows=256
// LIST-NEXT: max_outputs=64

// PASS: forerun-opt: There is no pass 'tabulate'; choose from step, kernels, ungroup-experts, canonicalize
// OPTION: forerun-opt: The pass plan-memory does not take these options
// LANGUAGE: forerun-opt: 'plan-memory{' is not a list of passes; write name,name{option=value}.
// FUNCTION: forerun-opt: This pass works on @forward, which the module lacks
// FILE: forerun-opt: There is no file 'missing.mlir'

// RUN: not forerun-opt %s -p raise-recurrence 2>&1 | filecheck %s

// A state that grows at its front: no step appends to it.

// CHECK: The state %seen grows with the text, but a step does not just append to it

spec.func @cached(%token: !spec.tensor<[1, 1], f32>, %seen: !spec.tensor<[1, S], f32>) {
  %all = spec.concat(%token, %seen) {dim = 1} -> !spec.tensor<[1, S+1], f32>
  %logits = spec.reshape(%token) {shape = [1, 1, 1]} -> !spec.tensor<[1, 1, 1], f32>
  spec.return(%logits, %all)
}

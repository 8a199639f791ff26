"""The part of the target that drafts: one published method per file, described by value and built for a target."""

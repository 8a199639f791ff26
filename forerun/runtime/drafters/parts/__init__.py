"""Methods that choose which part of the target drafts: one published method per file, built for a given target."""

"""Which part of the target drafts: one method of the literature a file, described by value and built for a target."""

"""Search over texts: beams, the best of several, and texts that a scorer ranks as they grow."""

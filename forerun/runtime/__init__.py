"""The runtime: trees, the cache, the engine, the generation loop, drafters and tree policies. It uses no IR."""

"""Leaf modules with flat parameters: norm, rope, attention, cache, conv, moe, block, init."""

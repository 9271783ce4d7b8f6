"""Held-out figures: one file per metric family, each number with its baseline, n, seed and interval."""

"""Data: everything from outside becomes checked items here, and items become packed batches."""

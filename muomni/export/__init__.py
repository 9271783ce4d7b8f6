"""Trained parts in formats that other programs run."""

"""Builders of the embedded data set from public packages; used by `muomni data embed` only."""

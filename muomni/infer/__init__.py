"""Inference: sessions, sampling, streams of text and speech."""

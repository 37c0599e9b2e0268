"""Discriminative PRMs: one forward pass, a score at the end of each step."""

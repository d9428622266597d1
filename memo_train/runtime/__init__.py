"""Carries a plan out: token tiles, swaps and recomputation of a training step."""

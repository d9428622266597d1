"""Builds, proves and measures memo-train on one GPU, in one call (docs/gpu_check.md)."""

"""Verification: task metrics, paired comparison of two engines, certificates and per-layer errors."""

"""Kernels: each module has a builder from workload and schedule to a TIR function, and packs its constants."""

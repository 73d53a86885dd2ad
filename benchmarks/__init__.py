"""Benchmarks beside the peers: `make bench`, results in `results/`, tables in `docs/benchmarks.md`."""

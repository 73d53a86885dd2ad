"""The energy laboratory: estimates for devices that are not at hand, and the benchmarks that calibrate them."""

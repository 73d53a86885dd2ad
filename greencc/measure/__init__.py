"""Latency, energy, memory, and the conditions they were measured under."""

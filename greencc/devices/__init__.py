"""Devices over SSH: models are built, verified, timed and metered on the machine that they are for."""

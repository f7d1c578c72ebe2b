"""The protocol: shared by device and aggregator. Pure: no I/O, no clock, no global randomness, no torch."""

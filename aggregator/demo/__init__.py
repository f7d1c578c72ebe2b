"""The whole loop on one machine, with every part real: `aggregator demo`."""

"""Federated analytics: what a round asks instead of training, and what one unit's examples add to the answer. Pure."""

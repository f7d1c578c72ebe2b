"""The attacks that benchmarks/attacks.py carries out on the product's own code."""

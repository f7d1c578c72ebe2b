"""The evidence of a task: what was measured, what was stated, and a signed bundle of both."""

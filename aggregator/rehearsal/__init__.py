"""A fleet rehearsed in one process: virtual devices, the references they are measured against, and their scores."""

"""Slow, obvious twins of the kernels, for properties to compare with; never in the product."""

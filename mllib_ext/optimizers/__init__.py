"""Optimizers: the one loop, and one minimizer a module. They see callables, never Spark."""

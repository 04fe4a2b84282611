"""A run from its case to its end: the objects, the step, diagnostics, memory and time told before."""

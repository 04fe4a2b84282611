"""A run from its case to its end: its objects, the time step, diagnostics, and forecasts of memory and time."""

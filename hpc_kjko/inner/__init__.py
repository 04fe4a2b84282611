"""The inner problem of a collision step: control field, density, functionals, and the solvers that minimise them."""

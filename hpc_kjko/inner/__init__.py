"""The inner problem of a collision step: control field, fitted density, functionals, and the solvers that minimise
them.
"""

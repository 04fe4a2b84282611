"""The mesh and the fields on it: deposit of all species, solve, kick of each; driven fields."""

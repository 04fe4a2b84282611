"""Independent solutions with which the particle method is compared.

They share no code with the rest of the package and need numpy and scipy only. Import them by module path:

* ``hpc_kjko.reference.grid_1d1v``: Vlasov-Poisson-Fokker-Planck on a grid of one position and one velocity, for one
  species or several, periodic or between walls.
* ``hpc_kjko.reference.dispersion``: linear growth and damping rates, with and without collisions, of one species or
  several; Bernstein waves across a magnetic field.
* ``hpc_kjko.reference.gaussian``: exact Gaussian solutions in a quadratic potential, any dimension.
* ``hpc_kjko.reference.landau``: Landau collisions: exact solutions for Maxwell molecules, exact rates of temperatures
  for Coulomb collisions, relaxations with and without a closure, and the plain pair sum over particles.
* ``hpc_kjko.reference.landau_waves``: frequency, damping and field of small waves under Landau collisions.
"""

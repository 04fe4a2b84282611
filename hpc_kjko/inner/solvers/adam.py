"""Full-batch Adam that starts from the parameters of the previous step (the paper's section 3.1) and keeps its best
iterate.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from hpc_kjko.inner.objective import Objective
from hpc_kjko.inner.solvers.base import Sample, Solver, TrainingData
from hpc_kjko.inner.solvers.trainer import Trainer
from hpc_kjko.parallel.comm import Communicator

#: With "auto" iterations: the number of iterations between two evaluations of the held-out objective; the number of
#: iterations after which training stops if it has not fallen; and the maximum in every step but the first.
AUTO_EVERY, AUTO_PATIENCE, AUTO_MOST = 5, 15, 200


class AdamSolver(Solver):
    """Minimises the objective over the parameters of the network. Gradients are summed over ranks.

    Parameters and the moments of Adam carry over from step to step. A cold start takes ``first_iterations``.

    Adam sometimes overshoots. If the last iterate were taken, one overshoot would spoil the time step. So the iterate
    with the lowest objective is kept. (Measured on the two-stream case: without this rule, about one step in a hundred
    dissipated several times too much.)
    """

    def __init__(
        self,
        objective: Objective[Any],
        comm: Communicator,
        *,
        iterations: int | Literal["auto"],
        first_iterations: int,
        learning_rate: float,
    ):
        self.iterations, self.first_iterations = iterations, first_iterations
        self.control, self.trainer = objective.control, Trainer(objective, comm, learning_rate)

    def minimise(self, data: TrainingData, step: float, stiffer: int = 0) -> int:
        if self.iterations == "auto":
            made = self._until_held_out_stalls(data, step, self.first_iterations if self.trainer.is_cold else AUTO_MOST)
        else:
            made = self._train([*data.folds], step, self.first_iterations if self.trainer.is_cold else self.iterations)
        if stiffer and data.held_out and self.trainer.value([data.select], step) > 0:  # a field of zero is better
            self.control.coefficients = torch.zeros_like(self.control.coefficients)
        return made

    def _train(self, fit: list[Sample], step: float, iterations: int) -> int:
        lowest, best = float("inf"), self.trainer.kept()
        for _ in range(iterations):
            value = self.trainer.total(self.trainer.backward([fold.rows() for fold in fit], step))
            if value < lowest:
                lowest, best = value, self.trainer.kept()
            self.trainer.descend()
        if not self.trainer.value(fit, step) < lowest:
            self.trainer.restore(best)
        return iterations

    def _until_held_out_stalls(self, data: TrainingData, step: float, most: int) -> int:
        """Train until the held-out objective has not fallen for a while. Keep the iterate with its lowest value."""
        lowest, best, best_at, made = self.trainer.value([data.select], step), self.trainer.kept(), 0, 0
        while made < most and made - best_at < AUTO_PATIENCE:
            for _ in range(AUTO_EVERY):
                self.trainer.backward([fold.rows() for fold in data.folds], step)
                self.trainer.descend()
            made += AUTO_EVERY
            value = self.trainer.value([data.select], step)
            if value < lowest:
                lowest, best, best_at = value, self.trainer.kept(), made
        self.trainer.restore(best)
        return made

    def state(self) -> dict[str, np.ndarray]:
        return self.trainer.state()

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        self.trainer.load(arrays)

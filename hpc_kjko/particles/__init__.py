"""The particles of a rank: state, drawing, folds, sums with the same bits on any number of ranks, control variate."""

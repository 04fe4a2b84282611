"""What can be made from run folders: analysis, labelled arrays, figures, reports, comparisons, sweeps."""

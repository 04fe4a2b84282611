"""What is made of run folders: analysis, labelled arrays, figures, reports, comparisons, sweeps."""

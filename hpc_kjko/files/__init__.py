"""What a run writes, and what reads it again: HDF5 storage, time series, openPMD, checkpoints, run folders."""

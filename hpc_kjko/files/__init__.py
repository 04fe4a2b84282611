"""The files of a run, writing and reading: HDF5 storage, time series, openPMD, checkpoints, run folders."""

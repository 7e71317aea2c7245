"""The experiment `f_sweep`."""

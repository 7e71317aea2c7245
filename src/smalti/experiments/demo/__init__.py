"""The experiment `demo`."""

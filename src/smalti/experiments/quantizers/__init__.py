"""The experiment `quantizers`."""

"""The experiment `window`."""

"""The experiment `modern`."""

"""The experiment `pixelsnail`."""

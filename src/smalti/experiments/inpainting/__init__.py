"""The experiment `inpainting`."""

"""Images: reading and writing files (`io`, `png_stream`), scaling and cropping, label and depth maps, masks,
pixel formats, boxes."""

from smalti.images.io import read_image, save_png, to_array, to_tensor

__all__ = ["read_image", "save_png", "to_array", "to_tensor"]

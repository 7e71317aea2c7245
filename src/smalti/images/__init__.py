"""What an image is here: reading and writing files (`io`, `png_stream`), label and depth maps, masks, pixel formats, boxes."""

"""Encoding and decoding strip by strip: images of any size in bounded memory, equal to the whole image's result."""

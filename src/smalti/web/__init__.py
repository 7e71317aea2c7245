"""The studio: a web page to generate, inpaint, outpaint and reconstruct images."""

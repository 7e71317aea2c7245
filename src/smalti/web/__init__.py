"""The studio: a web page to generate, inpaint, outpaint and reconstruct images, and the server behind it."""

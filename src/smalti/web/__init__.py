"""The studio: a page on which a person asks a pipeline for images and watches them being laid."""

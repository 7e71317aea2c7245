"""The studio: a page on which a person asks a pipeline for pictures and watches them being laid."""

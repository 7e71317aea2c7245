"""Foreign formats, one file each: read into our models, and written from them. History stays here."""

"""Foreign formats, one file each: read into smalti's models, and written from them. History stays here."""

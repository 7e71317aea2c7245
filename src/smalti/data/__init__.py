"""Where examples come from: folders, lists and archives of images (`sources`), what their files are (`file_types`), the
stream that training reads (`loader`), and shards of codes that stage 2 reads instead of images (`code_shards`)."""

"""The embedded data set: painted landscapes with exact labels. Read `painter`, then `composition`,
`landscape`, `scene_files`."""

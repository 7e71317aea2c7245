"""Objects in images: classes, boxes and keypoints, from smalti's own files and from those of published data sets."""

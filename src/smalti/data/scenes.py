"""The embedded data set: landscapes in four seasons at three times of day, its twelve classes.

Segmentation, depth, edges, boxes and keypoints come from the same painting as the picture, and are exact. `paint` makes one
picture, `write_scenes` a folder of them.
"""

from __future__ import annotations

from smalti.data.canvas import FAR
from smalti.data.painting import (
    CLASSES,
    COLOURS,
    KEYPOINTS,
    LABELS,
    Scene,
    SceneObject,
    paint,
    scene_class,
)
from smalti.data.scene_files import write_scenes

__all__ = [
    "CLASSES",
    "COLOURS",
    "FAR",
    "KEYPOINTS",
    "LABELS",
    "Scene",
    "SceneObject",
    "paint",
    "scene_class",
    "write_scenes",
]

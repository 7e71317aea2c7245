"""The embedded data set: landscapes in four seasons at three times of day, its twelve classes.

Segmentation, depth, edges, boxes and keypoints come from the same painting as the image, and are exact. `paint` makes
one image, `write_scenes` a folder of them.
"""

from __future__ import annotations

from smalti.scenes.canvas import FAR
from smalti.scenes.painter import CLASSES, COLORS, KEYPOINTS, LABELS, Scene, SceneObject, paint, scene_class
from smalti.scenes.scene_files import write_scenes

__all__ = [
    "CLASSES",
    "COLORS",
    "FAR",
    "KEYPOINTS",
    "LABELS",
    "Scene",
    "SceneObject",
    "paint",
    "scene_class",
    "write_scenes",
]

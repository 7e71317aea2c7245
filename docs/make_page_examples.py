"""The examples that the page shows of the bundled model: run it again when that model changes.

Each is a PNG file in the model's folder `examples`, with the settings that it was made by.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from smalti.hub.bundled_models import SCENES
from smalti.pipeline import Pipeline
from smalti.web.examples import FOLDER, example_plan
from smalti.web.jobs import Job, Report
from smalti.web.limits import Limits
from smalti.web.studio import Studio
from smalti.web.tasks import SampleTask

PROMPTS = (
    ("a lake below mountains, summer evening, trees", 512),
    ("a red house by a lake, winter, dusk", 128),
    ("open country on a summer day with clouds and trees", 128),
    ("a full moon over a lake on an autumn night", 128),
    ("a house among blooming trees in spring", 128),
)
"""Text and width; the height is that of the training, and the seed 0."""


def make(folder: Path) -> None:
    """Write the examples of the bundled model into its folder."""
    studio = Studio(Pipeline.from_pretrained(SCENES), Limits(), name=SCENES.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for index, (text, width) in enumerate(PROMPTS):
        task = SampleTask(example_plan(studio, 0, text=text, width=width))
        image = task.run(Report(Job(task, session="", address=""), lambda: True)).images[0]
        (folder / f"{index}.png").write_bytes(image.png)
    studio.close()


if __name__ == "__main__":
    make(SCENES / FOLDER)

"""The examples that the page shows of the bundled model: run it again when that model changes.

Each is a PNG file in the model's folder `examples`, with the settings that it was made by.
"""

from __future__ import annotations

from pathlib import Path

from smalti.hub.bundled_models import SCENES
from smalti.pipeline import Pipeline
from smalti.web.examples import FOLDER, example_plan
from smalti.web.jobs import Job, Report
from smalti.web.limits import Limits
from smalti.web.studio import Studio
from smalti.web.tasks import SampleTask

CHOSEN = (
    ("autumn-dusk", 20, 256),
    ("summer-day", 17, 64),
    ("autumn-dusk", 16, 64),
    ("spring-day", 19, 64),
    ("winter-dusk", 11, 64),
)
"""Label, seed and width; the height is that of the training."""


def make(folder: Path) -> None:
    """Write the examples of the bundled model into its folder."""
    studio = Studio(Pipeline.from_pretrained(SCENES), Limits(), name=SCENES.name)
    folder.mkdir(exist_ok=True)
    for place, (label, seed, width) in enumerate(CHOSEN):
        task = SampleTask(example_plan(studio, seed, label=label, width=width))
        image = task.run(Report(Job(task, session="", address=""), lambda: True)).images[0]
        (folder / f"{place}-{image.name}").write_bytes(image.png)
    studio.close()


if __name__ == "__main__":
    make(SCENES / FOLDER)

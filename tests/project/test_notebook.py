"""docs/quickstart.ipynb: its cells run, here with a tiny model, and it holds what they showed with the real one."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from smalti.hub.bundled_models import SCENES
from smalti.pipeline import Pipeline
from tests.project.tiny_scenes import tiny_pipeline

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
MAX_BYTES = 600_000
MAX_IMAGE_BYTES = 450_000
PNG = b"\x89PNG"


def test_all_cells_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "from_pretrained", tiny_pipeline)
    names: dict[str, Any] = {}
    shown = 0
    for number, cell in enumerate(CODE):
        *before, last = "".join(cell["source"]).split("\n")
        whole = "\n".join([*before, f"shown = {last}" if last.startswith("Shown(") else last])
        exec(compile(whole, f"code cell {number}", "exec"), names)
        if "shown" in names:
            png, size = names.pop("shown")._repr_png_()
            assert png.startswith(PNG)
            assert size["height"] == 2 * 128
            shown += 1
    assert shown >= 6


def test_the_file_is_small() -> None:
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    assert sum(len(image) for cell in CODE for image in images(cell)) < MAX_IMAGE_BYTES


def images(cell: dict[str, Any]) -> list[bytes]:
    """The PNG files that a cell showed."""
    shown = [output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
    return [base64.b64decode("".join(text)) for text in shown]


@pytest.mark.skipif(not SCENES.is_dir(), reason="the model that comes with smalti is not in this checkout yet")
def test_it_was_run_from_top_to_bottom() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1)), "run make notebook"
    for cell in CODE:
        source = "".join(cell["source"])
        assert not [output for output in cell["outputs"] if output["output_type"] == "error"], source
        if source.rpartition("\n")[2].startswith("Shown("):
            assert [image[:4] for image in images(cell)] == [PNG], source

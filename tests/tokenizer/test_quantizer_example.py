"""The quantizer that docs/quantizers.md adds, added as it is told there to a copy of the package, passes the tests of
all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import smalti

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "quantizers.md").read_text("utf-8")
FENCE = re.compile(r"^```(python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def changed(text: str, diff: str) -> str:
    """A text after the hunks of a diff, which are parted by @@."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in marks) for marks in (" -", " +"))
        assert text.count(before) == 1, f"the page changes what is not there:\n{before}"
        text = text.replace(before, after)
    return text


def test_the_example_of_the_page_works(tmp_path: Path) -> None:
    (_, code), (_, names), *tests = FENCE.findall(PAGE)
    package = tmp_path / "smalti"
    ignored = shutil.ignore_patterns("__pycache__", "models", "web", "experiments", "cli")
    shutil.copytree(Path(smalti.__file__).parent, package, ignore=ignored)
    quantizers = package / "tokenizer" / "quantizers"
    (quantizers / "axes.py").write_text(code, "utf-8")
    named = quantizers / "__init__.py"
    named.write_text(changed(named.read_text("utf-8"), names), "utf-8")
    for name, (_, diff) in zip(("test_quantizer_table.py", "test_quantizer_processes.py"), tests, strict=True):
        (tmp_path / name).write_text(changed((ROOT / "tests" / "tokenizer" / name).read_text("utf-8"), diff), "utf-8")
    (tmp_path / "pytest.ini").touch()  # so that no other settings are looked for further up
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "axes or is_tried"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (count := re.search(r"^(\d+) passed", ended.stdout, re.MULTILINE)) is not None, ended.stdout
    assert int(count[1]) >= 12

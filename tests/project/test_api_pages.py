"""The pages that `make api` writes: all there, as the docstrings are now, and what Markdown would misread is not
misread."""

from __future__ import annotations

import ast
import importlib
import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MAKER: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
WRITTEN: dict[str, str] = dict(MAKER["pages"]())


def test_the_pages_are_those_of_the_docstrings() -> None:
    there = {path.name: path.read_text("utf-8") for path in (ROOT / "docs" / "api").glob("*.md")}
    assert set(there) == set(WRITTEN), "run make api"
    stale = [name for name, text in WRITTEN.items() if there[name] != text]
    assert not stale, f"docstrings have changed since {', '.join(stale)}: run make api"


def test_every_exported_prior_is_on_its_page() -> None:
    exported: list[str] = importlib.import_module("smalti.prior").__all__
    classes = [name for name in exported if isinstance(getattr(importlib.import_module("smalti.prior"), name), type)]
    assert len(classes) > 10
    assert [name for name in classes if f"### class `{name}" not in WRITTEN["prior.md"]] == []


def test_signatures_and_docstrings_are_there() -> None:
    page = WRITTEN["pipeline.md"]
    assert "### class `Pipeline(tokenizer: VQGAN, prior: Prior, condition: Condition)`" in page
    assert "- `to(device: torch.device | str) -> Pipeline`\n  Move all networks; returns the pipeline itself." in page
    assert "- `device: torch.device`\n  Where the networks are." in page
    assert "- `tokenizer: " not in page, "not a field"
    assert "_native" not in page
    assert "- `codes: Tensor`\n  (B,h,w) int64 in \\[0,size)." in WRITTEN["tokenizer.md"]


def test_what_markdown_would_misread() -> None:
    text = MAKER["_text"]
    assert text("in [0,K) < `[a](b) <c>` [d]\n    [code] <e>") == "in \\[0,K) &lt; `[a](b) <c>` \\[d]\n    [code] <e>"
    (function,) = ast.parse("def f(self, a: int = 1, *b: str) -> None: pass").body
    assert MAKER["_signature"](function) == "f(a: int=1, *b: str) -> None"
    (function,) = ast.parse("def f(self): pass").body
    assert MAKER["_signature"](function) == "f()"

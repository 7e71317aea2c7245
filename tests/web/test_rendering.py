"""The page's images of codes, painted maps, and sessions."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smalti.core.errors import SmaltiError
from smalti.generation.generation_loop import GenerationState
from smalti.generation.partial_images import PartialImages
from smalti.images.io import read_image, read_settings, to_tensor
from smalti.web import rendering
from smalti.web.code_images import from_text, masked_image, mosaic
from smalti.web.sessions import Sessions
from tests.images.test_images import png_of_size
from tests.web.test_studio import LIMITS, painted

# --- what is shown -------------------------------------------------------------------------------------------------


def test_codes_not_generated_are_transparent() -> None:
    image, codes = torch.rand(3, 8, 12) * 2 - 1, torch.tensor([[3, 4, -1], [-1, -1, -1]])
    shown = masked_image(image, codes)
    assert shown.shape == (8, 12, 4)
    assert (shown[:4, :8, 3] == 255).all()
    assert shown[:, :, 3].sum() == 255 * 4 * 8
    assert masked_image(image[:1], codes).shape == (8, 12, 4)


def test_a_mosaic_has_one_color_a_code() -> None:
    codes = torch.tensor([[7, 2, 7], [2, 2, 5]])
    pixels = torch.arange(6.0).view(2, 3).repeat_interleave(4, 0).repeat_interleave(4, 1) / 10
    shown = mosaic(codes, pixels.expand(3, -1, -1))
    level = [round((number / 10 + 1) * 127.5) for number in range(6)]
    seven, two = round((level[0] + level[2]) / 2), round((level[1] + level[3] + level[4]) / 3)
    corners = shown[::4, ::4, 0].tolist()
    assert corners == [[seven, two, seven], [two, two, level[5]]]
    assert (shown[3::4] == int(255 * 0.82)).all()  # the lines
    assert (shown[:, 3::4] == int(255 * 0.82)).all()
    assert len(np.unique(mosaic(codes, pixels[None, ::4, ::4]).reshape(-1, 3), axis=0)) == 3  # f = 1: no room for lines


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_what_is_painted_arrives(height: int, width: int, seed: int) -> None:
    labels = torch.randint(0, 200, (height, width), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(from_text(painted(labels), max_length=10**6, name="map"), labels)


@pytest.mark.parametrize("text", ["nothing", "/etc/hostname", "data:image/png;base64,?", "data:image/svg+xml,<svg/>"])
def test_what_is_not_painted_is_reported(text: str) -> None:
    with pytest.raises(SmaltiError, match="painted for the map"):
        from_text(text, max_length=10**6, name="map")


def test_too_much_paint_is_reported() -> None:
    with pytest.raises(SmaltiError, match="at most 100 characters"):
        from_text(painted(torch.zeros(80, 80)), max_length=100, name="map")
    bomb = "data:image/png;base64," + base64.b64encode(png_of_size(60_000, 60_000)).decode()
    with pytest.raises(SmaltiError, match="more than 89,478,485 pixels"):
        from_text(bomb, max_length=10**6, name="map")


def test_the_stage_shows_rows_and_time() -> None:
    codes = torch.tensor([[[1, 2], [3, -1], [-1, -1]]])
    state = GenerationState(codes, generated=3, total=6, seconds=75.0)
    now = PartialImages(state, torch.zeros(1, 3, 12, 8))
    page = rendering.generation(now)
    assert "Row 2 of 3, about 1 min left" in page
    assert "width:50.0%" in page
    assert page.count("<img") == 1
    assert "left" not in rendering.generation(now._replace(state=state._replace(generated=0)))
    whole = rendering.generation(now._replace(state=state._replace(codes=codes.clamp(min=0), generated=6)))
    assert "Row" not in whole
    assert "track" not in whole
    assert "&lt;script" in rendering.waiting("<script>")
    message = [rendering.time_left(seconds) for seconds in (0.2, 12.4, 59, 61, 7200)]
    assert message == ["1 s", "12 s", "59 s", "1 min", "2.0 h"]


# --- whose images are whose --------------------------------------------------------------------------------------


def test_sessions_have_their_own_images() -> None:
    sessions, image = Sessions(LIMITS), torch.rand(3, 4, 4) * 2 - 1
    one, other = sessions.session("a"), sessions.session("b")
    path = one.keep(image, name="../../dusk/3", caption="dusk 3", settings={"seed": 3})
    assert path.parent != other.keep(image, name="dusk", caption="", settings={}).parent
    assert re.fullmatch(r"dusk-3-[0-9a-f]{6}\.png", path.name)
    assert read_settings(path) == {"seed": 3}
    assert torch.allclose(to_tensor(read_image(path, channels=3, name="")), image, atol=0.01)
    assert [each.caption for each in one.gallery] == ["dusk 3"]
    assert sessions.session("a") is one
    sessions.close()
    assert not path.exists()


def test_the_gallery_is_bounded() -> None:
    sessions, image = Sessions(LIMITS), torch.zeros(3, 4, 4)
    session = sessions.session("a")
    paths = [session.keep(image, name="x", caption=str(number), settings={}) for number in range(5)]
    assert [each.caption for each in session.gallery] == ["4", "3", "2"]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    sessions.session("b")
    sessions.session("a")
    sessions.session("c")  # two may be there: b was longest away
    assert len(sessions) == 2
    assert sessions.session("a") is session
    assert not session.stop.is_set()
    sessions.leave("a")
    assert session.stop.is_set()  # what was being laid for nobody
    assert not paths[-1].exists()
    sessions.close()


def test_a_closed_session_may_still_write(tmp_path: Path) -> None:
    sessions = Sessions(LIMITS)
    session = sessions.session("a")
    sessions.leave("a")
    sessions.leave("a")
    late = session.keep(torch.zeros(3, 4, 4), name="late", caption="", settings={})  # its last row was under way
    assert late.is_file()
    sessions.close()
    assert not late.exists()

"""The studio's page as programs see it: through `gradio_client` and by plain requests. Run by `make check-web`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.images.io import read_image, read_settings, save_png, to_array
from smalti.pipeline import Pipeline
from smalti.web.requests import Limits
from smalti.web.server import POLICY, Server, serve
from tests.images.test_images import png_of_size
from tests.web.test_studio import CLASSES, PLACES, both, pipeline, written

pytestmark = pytest.mark.web

LIMITS = Limits(side=128, codes=1200, count=4, upload=2, waiting=20, gallery=6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "tiny"
    pipeline(both()).save_pretrained(folder, about={})
    return folder


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Server]:
    page = serve(model, limits=LIMITS, names=PLACES, device="cpu")
    yield page
    page.close()


@pytest.fixture(scope="module")
def client(served: Server) -> Any:
    return open_client(served)


def open_client(served: Server) -> Any:
    from gradio_client import Client

    return Client(served.address, verbose=False)


def test_the_model_says_what_can_be_requested(client: Any) -> None:
    message = client.predict(api_name="/describe")
    assert (message["model"], message["size"], message["factor"], message["codes"]) == ("tiny", [12, 16], 4, 16)
    assert [part["key"] for part in message["conditions"]] == ["label", "segmentation"]
    assert tuple(message["conditions"][1]["names"]) == PLACES
    assert message["limits"]["side"] == 128
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {
        "/sample",
        "/complete",
        "/reconstruct",
        "/describe",
    }


def test_samples_are_those_of_the_pipeline(client: Any, model: Path, tmp_path: Path) -> None:
    from gradio_client import handle_file

    labels = torch.randint(0, 3, (12, 24))
    save_png(tmp_path / "map.png", labels.numpy().astype("uint8")[:, :, None])
    conditions = {"label": "night", "segmentation": handle_file(tmp_path / "map.png")}
    files = client.predict({"width": 24, "count": 2, "seed": 7}, conditions, api_name="/sample")
    expected = Pipeline.from_pretrained(model).sample(2, size=(12, 24), seed=7, label="night", segmentation=labels)
    for place, (file, image) in enumerate(zip(files, expected, strict=True)):
        assert (read_image(Path(file), channels=3, name="") == to_array(image)).all()
        settings = read_settings(Path(file))
        assert settings is not None
        assert settings["seed"] == 7 + place
        assert settings["label"] == "night"
        assert settings["model"] == "tiny"


def test_an_image_is_completed_and_reconstructed(client: Any, tmp_path: Path) -> None:
    from gradio_client import handle_file

    file = handle_file(written(tmp_path / "given.png", height=12, width=16))
    (made,) = client.predict(file, None, "to the right", 8, {"seed": 1}, {"label": "dawn"}, api_name="/complete")
    assert read_image(Path(made), channels=3, name="").shape == (12, 24, 3)
    found = client.predict(file, api_name="/reconstruct")
    assert len(found["codes"]) == 3
    assert all(len(row) == 4 for row in found["codes"])
    assert 0 < found["psnr"] < 60


@pytest.mark.parametrize(
    ("settings", "conditions", "sentence"),
    [
        ({"width": -4}, {}, "width = -4"),
        ({"width": 6400}, {}, "the limit of a side is 128 pixels"),
        ({"count": 99}, {}, "the limit is 4 per request"),
        ({}, {"label": "dusc"}, "did you mean 'dusk'"),
        ({}, {"color": "red"}, "color"),
        ({}, {"segmentation": "/etc/hostname"}, "map painted for the segmentation"),
        ({}, {"segmentation": {"path": "/etc/hostname"}}, "not an uploaded file"),
        ({}, {"segmentation": {"path": "../../etc/hostname"}}, "not an uploaded file"),
        ({}, {"label": ["dusk"]}, "the label takes text"),
    ],
)
def test_invalid_requests_are_sentences(client: Any, settings: Any, conditions: Any, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence) as error:
        client.predict(settings, conditions, api_name="/sample")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bomb.png", png_of_size(20_000, 20_000), "has more than 89,478,485 pixels"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image of any kind"),
    ],
)
def test_wrong_uploads_are_sentences(client: Any, tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    from gradio_client import handle_file

    (tmp_path / name).write_bytes(data)
    with pytest.raises(Exception, match=rf"{re.escape(name)} {sentence}"):
        client.predict(handle_file(tmp_path / name), api_name="/reconstruct")


def test_files_of_the_server_are_not_read_for_anybody(served: Server) -> None:
    import httpx

    claimed = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    begun = httpx.post(f"{served.address}gradio_api/call/reconstruct", json={"data": [claimed]})
    answer = httpx.get(f"{served.address}gradio_api/call/reconstruct/{begun.json()['event_id']}").text
    assert "event: error" in answer
    assert "codes" not in answer
    assert httpx.get(f"{served.address}gradio_api/file=/etc/hostname").status_code == 403


def test_ten_clients_are_served_in_turn_each_with_its_own(served: Server, model: Path) -> None:
    pipe = Pipeline.from_pretrained(model)

    def ask(number: int) -> list[str]:
        conditions = {"label": CLASSES[number % 3]}
        found: list[str] = open_client(served).predict(
            {"seed": 100 * number, "width": 64}, conditions, api_name="/sample"
        )
        return found

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    for number, files in enumerate(answers):
        assert len(files) == 1
        expected = pipe.sample(1, size=(12, 64), seed=100 * number, label=CLASSES[number % 3])[0]
        assert (read_image(Path(files[0]), channels=3, name="") == to_array(expected)).all()


def test_the_browser_may_load_from_here_alone(served: Server) -> None:
    import httpx

    answer = httpx.get(served.address)
    assert answer.headers["content-security-policy"] == POLICY
    assert "default-src 'self'" in POLICY
    assert "http" not in POLICY


def test_a_password_keeps_others_out(model: Path) -> None:
    import httpx

    page = serve(model, limits=LIMITS, password="secret", device="cpu")
    try:
        assert httpx.get(f"{page.address}config").status_code == 401
        wrong = httpx.post(f"{page.address}login", data={"username": "smalti", "password": "guess"})
        assert wrong.status_code == 400
        right = httpx.post(f"{page.address}login", data={"username": "smalti", "password": "secret"})
        assert right.status_code == 200
    finally:
        page.close()


def test_a_taken_port_is_reported(model: Path, served: Server) -> None:
    with pytest.raises(SmaltiError, match="choose another --port"):
        serve(model, port=int(served.address.rstrip("/").rpartition(":")[2]), device="cpu")


ASKS = """
import socket, sys, time, urllib.request
named, hosts = socket.getaddrinfo, set()
def noted(host, *rest, **options):
    hosts.add(str(host))
    return named(host, *rest, **options)
socket.getaddrinfo = noted
from smalti.web.server import serve
page = serve(sys.argv[1], device="cpu")
urllib.request.urlopen(page.address).read()
time.sleep(2)  # what is sent in the background
page.close()
print(*hosts)
"""


def test_the_server_calls_nobody_else(model: Path) -> None:
    """In a process of its own: gradio_client, which the other tests use, tells others of itself."""
    run = subprocess.run([sys.executable, "-c", ASKS, str(model)], capture_output=True, text=True, check=True)
    hosts = set(run.stdout.split())
    assert "127.0.0.1" in hosts
    assert hosts <= {"127.0.0.1", "localhost", "::1", "None"}

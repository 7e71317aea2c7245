"""The server's routes as programs see them: jobs, progress, results, uploads, and errors of one sentence."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from smalti.images.io import read_image, read_settings, to_array
from smalti.web.server import POLICY
from smalti.web.studio import Studio
from tests.images.test_images import png_of_size
from tests.web.pipelines import CLASSES, all_three, both, file_bytes, finished, pixels, served, studio
from tests.web.test_uploads import colored

pytest.importorskip("fastapi", reason="the extra `web` is not installed")


@pytest.fixture(scope="module")
def work() -> Studio:
    return studio(both())


@pytest.fixture(scope="module")
def client(work: Studio) -> Iterator[Any]:
    with served(work) as opened:
        yield opened


def post(client: Any, job: dict[str, Any], **files: bytes) -> Any:
    named = {name: (f"{name}.png", data, "image/png") for name, data in files.items()}
    return client.post("/api/jobs", data={"job": json.dumps(job)}, files=named or None)


def shown(client: Any, url: str) -> Any:
    answer = client.get(f"/{url}")
    assert answer.headers["content-type"] == "image/png"
    return read_image(io.BytesIO(answer.content), channels=3, name="")


def test_the_page_is_served_from_here_alone(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert 'property="og:title" content="smalti: tiny"' in page.text
    assert "{{" not in page.text
    assert "http" not in page.text
    assert page.headers["content-security-policy"] == POLICY
    assert "frame-ancestors 'none'" in POLICY
    assert "unsafe" not in POLICY
    assert page.headers["x-content-type-options"] == "nosniff"
    for name in ("main.js", "style.css", "icon.svg"):
        assert client.get(f"/static/{name}").status_code == 200
    for path in ("/static/../server.py", "/static/%2e%2e/server.py", "/static//etc/hostname"):
        assert client.get(path).status_code == 404


def test_a_job_is_followed_and_its_images_are_the_pipelines(client: Any, work: Studio) -> None:
    answer = client.post("/api/jobs", json={"settings": {"seed": 7, "count": 2}, "conditions": {"label": "night"}})
    assert answer.status_code == 202
    key = answer.json()["job"]
    states = []
    with client.stream("GET", f"/api/jobs/{key}/events") as events:
        states = [json.loads(line[6:]) for line in events.iter_lines() if line.startswith("data: ")]
    assert states[-1]["phase"] == "done"
    assert finished(client, key) == states[-1]
    expected = work.pipeline.sample(2, seed=7, label="night")
    for image, tensor in zip(states[-1]["images"], expected, strict=True):
        assert np.array_equal(shown(client, image["url"]), to_array(tensor))
        assert (image["height"], image["width"], image["caption"]) == (12, 16, "night")
    assert [image["seed"] for image in states[-1]["images"]] == [7, 8]
    settings = read_settings(io.BytesIO(client.get(f"/{states[-1]['images'][1]['url']}").content))
    assert settings is not None
    assert (settings["seed"], settings["label"], settings["model"]) == (8, "night", "tiny")
    assert client.get("/api/model").json()["pace"]["window"] > 0


def test_a_map_and_an_edit_are_sent_as_files(client: Any, work: Studio) -> None:
    labels = np.random.RandomState(0).randint(0, 3, (12, 16))
    state = finished(
        client, post(client, {"settings": {"seed": 1}}, segmentation=file_bytes(colored(labels))).json()["job"]
    )
    made = shown(client, state["images"][0]["url"])
    import torch

    expected = work.pipeline.sample(1, seed=1, segmentation=torch.from_numpy(labels))
    assert np.array_equal(made, to_array(expected[0]))
    mask = np.zeros((12, 16), np.uint8)
    mask[:4] = 255
    job = {"task": "edit", "extend": {"left": 4}}
    state = finished(client, post(client, job, image=file_bytes(made), mask=file_bytes(mask)).json()["job"])
    edited = shown(client, state["images"][0]["url"])
    assert edited.shape == (12, 20, 3)
    assert np.array_equal(edited[4:, 4:], made[4:])


def test_a_photo_becomes_codes(client: Any) -> None:
    state = finished(client, post(client, {"task": "reconstruct"}, image=file_bytes(pixels(16, 24))).json()["job"])
    assert len(state["facts"]["codes"]) == 4
    assert [image["caption"] for image in state["images"]] == ["Original", "Reconstruction", "Codes"]


def test_an_upload_comes_back_for_editing_with_its_settings(client: Any) -> None:
    state = finished(client, client.post("/api/jobs", json={"conditions": {"label": "dawn"}}).json()["job"])
    ours = client.get(f"/{state['images'][0]['url']}").content
    answer = client.post("/api/images", files={"image": ("a.png", ours, "image/png")}).json()
    assert (answer["height"], answer["width"], answer["settings"]["conditions"]) == (12, 16, {"label": "dawn"})
    foreign = client.post("/api/images", files={"image": ("b.jpg", file_bytes(pixels(21, 30), kind="JPEG"))}).json()
    assert (foreign["height"], foreign["width"], foreign["settings"]) == (20, 28, None)
    assert base64.b64decode(foreign["png"])[:4] == b"\x89PNG"


def test_a_map_file_is_drawn_in_the_colors_of_the_page(client: Any) -> None:
    labels = np.random.RandomState(0).randint(0, 3, (12, 16))
    file = {"map": ("m.png", file_bytes(labels.astype(np.uint8)), "image/png")}
    answer = client.post("/api/maps/segmentation?height=12&width=16", files=file)
    assert np.array_equal(read_image(io.BytesIO(answer.content), channels=4, name=""), colored(labels))
    photo = client.post("/api/maps/segmentation", files={"map": ("p.png", file_bytes(pixels(12, 16)))})
    assert photo.status_code == 400
    assert "p.png is no label map of this model" in photo.json()["error"]


def test_links_are_read(client: Any) -> None:
    answer = client.get("/api/settings?label=dusk&width=24&seed=5").json()
    assert answer["settings"]["width"] == 24
    assert answer["conditions"] == {"label": "dusk"}
    wrong = client.get("/api/settings?label=noon")
    assert (wrong.status_code, wrong.json()["error"]) == (
        400,
        "there is no label 'noon'; there are: dawn, dusk, night",
    )


def test_examples_appear_by_themselves() -> None:
    with served(studio(all_three(), order="any")) as client:
        for _ in range(600):
            examples = client.get("/api/examples").json()
            if len(examples) == 4:
                break
            import time

            time.sleep(0.05)
        assert [one["settings"]["label"].partition("-")[0] for one in examples] == [
            "autumn",
            "spring",
            "summer",
            "winter",
        ]
        assert shown(client, examples[3]["url"]).shape == (12, 16, 3)
        assert client.get("/api/examples/9.png").status_code == 404


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        ({"settings": {"width": -4}}, "width = -4"),
        ({"settings": {"width": 6400}}, "the limit of a side is 64 pixels"),
        ({"settings": {"count": 99}}, "the limit is 4 per request"),
        ({"settings": {"seed": [1]}}, "seed = "),
        ({"settings": None}, "settings = None"),
        ({"settings": "fast"}, "settings = 'fast'"),
        ({"conditions": {"label": "dusc"}}, "did you mean 'dusk'"),
        ({"conditions": {"color": "red"}}, "color"),
        ({"conditions": {"segmentation": "/etc/hostname"}}, "the segmentation takes a file"),
        ({"conditions": {"segmentation": {"path": "/etc/hostname"}}}, "conditions"),
        ({"conditions": {"label": ["dusk"]}}, "conditions"),
        ({"task": "edit", "image": {"path": "http://127.0.0.1/x.png"}}, "unknown key 'image'"),
        ({"task": "edit"}, "needs an image"),
        ({"extend": [1, 2]}, "extend"),
        ({"task": None}, "task"),
        ([], "a job is a JSON object"),
        ("sample", "a job is a JSON object"),
        (None, "a job is a JSON object"),
        (7, "a job is a JSON object"),
    ],
)
def test_wrong_jobs_are_sentences(client: Any, job: Any, sentence: str) -> None:
    as_json = client.post("/api/jobs", content=json.dumps(job), headers={"content-type": "application/json"})
    check_sentence(as_json, 400, sentence)
    check_sentence(client.post("/api/jobs", files={"job": (None, json.dumps(job))}), 400, sentence)


def check_sentence(answer: Any, status: int, sentence: str) -> None:
    assert answer.status_code == status, answer.text
    ((key, message),) = answer.json().items()
    assert key == "error"
    assert sentence in message
    assert "\n" not in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"", "application/json", "the job is not JSON"),
        (b"{", "application/json", "the job is not JSON"),
        (b"[" * 60_000, "application/json", "the job is not JSON"),
        (b"\xff\xfe", "application/json", "the job is not JSON"),
        (b"job=1", "application/x-www-form-urlencoded", "a request is JSON or a form"),
        (b"x", "text/plain", "a request is JSON or a form"),
        (b"x", "multipart/form-data", "boundary"),
        (b"--a\r\nnonsense", "multipart/form-data; boundary=a", "a job is a JSON object"),
    ],
)
def test_wrong_bodies_are_sentences(client: Any, content: bytes, kind: str, sentence: str) -> None:
    check_sentence(client.post("/api/jobs", content=content, headers={"content-type": kind}), 400, sentence)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("PUT", "/api/jobs", 405),
        ("GET", "/api/jobs/unknown", 404),
        ("DELETE", "/api/jobs/unknown", 404),
        ("GET", "/api/jobs/unknown/events", 404),
        ("GET", "/api/jobs/unknown/images/0.png", 404),
        ("GET", "/api/jobs/unknown/images/first.png", 400),
        ("GET", "/api/settings?width=wide", 400),
        ("POST", "/api/images", 400),
        ("POST", "/api/maps/label", 400),
    ],
)
def test_wrong_addresses_are_sentences(client: Any, method: str, path: str, status: int) -> None:
    check_sentence(client.request(method, path), status, "")


def test_large_bodies_are_refused_before_they_are_read(client: Any) -> None:
    check_sentence(client.post("/api/images", content=bytes(2**20 + 1)), 413, "at most 1 MiB")

    def chunks() -> Iterator[bytes]:
        yield b'--a\r\ncontent-disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        for _ in range(20):
            yield bytes(2**17)

    form = {"content-type": "multipart/form-data; boundary=a"}
    check_sentence(client.post("/api/images", content=chunks(), headers=form), 413, "at most 1 MiB")
    bomb = client.post("/api/images", files={"image": ("bomb.png", png_of_size(20_000, 20_000))})
    check_sentence(bomb, 400, "bomb.png has more than 89,478,485 pixels")
    path = client.post("/api/images", files={"image": ("../../etc/passwd", b"x")})
    check_sentence(path, 400, "passwd is not an image")
    assert ".." not in path.text


def test_a_password_keeps_others_out() -> None:
    with served(studio(), password="secret") as client:
        for path in ("/", "/api/model", "/static/main.js"):
            check_sentence(client.get(path), 401, "password")
        check_sentence(client.get("/", auth=("smalti", "guess")), 401, "password")
        check_sentence(client.get("/", auth=("other", "secret")), 401, "password")
        assert client.get("/", auth=("smalti", "secret")).status_code == 200


def test_pages_of_other_servers_may_not_use_it(client: Any) -> None:
    other = client.post("/api/jobs", json={}, headers={"origin": "http://evil.example"})
    check_sentence(other, 403, "pages of other servers")
    own = client.post("/api/jobs", json={}, headers={"origin": "http://testserver"})
    assert own.status_code == 202
    finished(client, own.json()["job"])


def test_a_defect_is_a_sentence_without_a_traceback(work: Studio, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    with served(studio()) as client:
        monkeypatch.setattr("smalti.web.studio.Studio.describe", lambda self: 1 / 0)
        answer = client.get("/api/model")
        check_sentence(answer, 500, "the server has a defect")
        assert "ZeroDivisionError" in caplog.text


def test_clients_get_their_own_images(client: Any, work: Studio) -> None:
    for number, name in enumerate(CLASSES):
        state = finished(
            client,
            client.post("/api/jobs", json={"settings": {"seed": number}, "conditions": {"label": name}}).json()["job"],
        )
        expected = work.pipeline.sample(1, seed=number, label=name)[0]
        assert np.array_equal(shown(client, state["images"][0]["url"]), to_array(expected))

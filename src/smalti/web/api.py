"""The routes of the page's server: the model, jobs and their progress, uploads, and examples.

docs/studio.md lists them. Every error is JSON, {"error": a sentence}, without a path of this machine.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, final

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.datastructures import FormData, UploadFile

from smalti.core.errors import SmaltiError
from smalti.core.files import parse_json
from smalti.core.settings import as_mapping
from smalti.web.examples import Examples
from smalti.web.jobs import Job, JobQueue
from smalti.web.limits import too_large, too_many, too_slow, unknown
from smalti.web.requests import from_link, parse_job
from smalti.web.sessions import Session, Sessions
from smalti.web.studio import Studio
from smalti.web.submission import Submission, dropped_image, loaded_map, task_of
from smalti.web.uploads import Upload

COOKIE = "smalti_session"
TICK = 0.1
"""Seconds between two looks at a job whose progress is sent."""
KEEP_ALIVE = 15.0
"""Seconds without a change after which an empty event keeps the connection open."""
READERS = 2
"""Uploads that are decoded at the same time; others wait for their turn, on disk if they are large."""
UPLOADS_PER_ADDRESS = 8
"""Requests with files that one address may be sending at the same time."""
UPLOAD_SECONDS = 120.0
"""The longest time that sending a request may take."""
MAX_JSON_BYTES = 2**16
"""Bytes of a request without files."""


@final
class Api:
    """The state of the server, and its routes."""

    def __init__(self, studio: Studio, queue: JobQueue, sessions: Sessions, examples: Examples) -> None:
        self.studio, self.queue, self.sessions, self.examples = studio, queue, sessions, examples
        self._readers = asyncio.Semaphore(READERS)
        self._uploads: Counter[str] = Counter()
        self.router = APIRouter(prefix="/api")
        for path, function, method in (
            ("/model", self.model, "GET"),
            ("/settings", self.settings, "GET"),
            ("/examples", self.example_list, "GET"),
            ("/examples/{number}.png", self.example_image, "GET"),
            ("/images", self.read_image, "POST"),
            ("/maps/{key}", self.read_map, "POST"),
            ("/jobs", self.submit, "POST"),
            ("/jobs/{key}", self.job, "GET"),
            ("/jobs/{key}", self.cancel, "DELETE"),
            ("/jobs/{key}/events", self.events, "GET"),
            ("/jobs/{key}/images/{number}.png", self.job_image, "GET"),
        ):
            self.router.add_api_route(path, function, methods=[method], response_model=None)

    # --- the model ------------------------------------------------------------------------------------------------

    async def model(self) -> Response:
        """What the model can do."""
        return JSONResponse(self.studio.describe())

    async def settings(self, request: Request) -> Response:
        """The query of a link -> the settings and conditions that it restores."""
        studio = self.studio
        found, chosen = from_link(studio.pipeline, dict(request.query_params), studio.parts, studio.limits)
        return JSONResponse({"settings": as_mapping(found), "conditions": chosen})

    async def example_list(self) -> Response:
        """The examples, without their pixels."""
        described = [
            {"url": f"api/examples/{place}.png", "height": one.size[0], "width": one.size[1], "settings": one.settings}
            for place, one in enumerate(list(self.examples.images))
        ]
        return JSONResponse(described)

    async def example_image(self, number: int) -> Response:
        """An example's PNG file."""
        if not 0 <= number < len(self.examples.images):
            raise unknown(f"there is no example {number}")
        return Response(self.examples.images[number].png, media_type="image/png")

    # --- uploads --------------------------------------------------------------------------------------------------

    async def read_image(self, request: Request) -> Response:
        """An image file -> its pixels as a PNG file, cropped to whole tiles, and its settings if smalti made it."""
        async with self._submission(request) as submission:
            return JSONResponse(await run_in_threadpool(dropped_image, self.studio, submission))

    async def read_map(self, key: str, request: Request) -> Response:
        """A file with a label map -> the map in the colors of the page, at the size of the query (height, width)."""
        async with self._submission(request) as submission:
            png = await run_in_threadpool(loaded_map, self.studio, key, submission)
        return Response(png, media_type="image/png")

    # --- jobs -----------------------------------------------------------------------------------------------------

    async def submit(self, request: Request) -> Response:
        """A job request and its files -> the job, which waits."""
        session, address = self._session(request), _address(request)
        new = session is None
        async with self._submission(request) as submission:
            task = await run_in_threadpool(task_of, self.studio, parse_job(submission.fields), submission.files)
        if session is None:
            session = self.sessions.open(address)
        job = self.queue.submit(task, session=session.key, address=address)
        self.sessions.add(session, job)
        response = JSONResponse(self._described(job), status_code=202)
        if new:
            response.set_cookie(
                COOKIE, session.key, httponly=True, samesite="strict", secure=request.url.scheme == "https"
            )
        return response

    async def job(self, key: str, request: Request) -> Response:
        """How far a job is."""
        return JSONResponse(self._described(self._job(request, key)))

    async def cancel(self, key: str, request: Request) -> Response:
        """Cancel a job of this session."""
        job = self._job(request, key)
        self.queue.cancel(job)
        return JSONResponse(self._described(job))

    async def events(self, key: str, request: Request) -> Response:
        """The job's states as server-sent events, until it is over."""
        self._job(request, key)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._states(request, key), media_type="text/event-stream", headers=headers)

    async def _states(self, request: Request, key: str) -> AsyncIterator[str]:
        sent, quiet = None, 0.0
        while not await request.is_disconnected():
            try:
                job = self._job(request, key)
            except SmaltiError:
                return
            state = (job.changed, self.queue.position(job)[0])
            if state != sent:
                sent, quiet = state, 0.0
                yield f"data: {json.dumps(self._described(job))}\n\n"
            if job.is_over:
                return
            await asyncio.sleep(TICK)
            quiet += TICK
            if quiet > KEEP_ALIVE:
                quiet = 0.0
                yield ": waiting\n\n"

    async def job_image(self, key: str, number: int, request: Request) -> Response:
        """A finished image's PNG file."""
        job = self._job(request, key)
        images = job.outcome.images if job.outcome else ()
        if not 0 <= number < len(images):
            raise unknown(f"the job has no image {number}")
        headers = {"content-disposition": f'inline; filename="{images[number].name}"', "cache-control": "no-store"}
        return Response(images[number].png, media_type="image/png", headers=headers)

    @asynccontextmanager
    async def _submission(self, request: Request) -> AsyncIterator[Submission]:
        """A request's body -> its fields and files, while it is the turn of this request to be decoded.

        Slow senders do not keep a turn from others. Raises `Refusal` for too many of one address, and too slow ones.
        """
        address = _address(request)
        if self._uploads[address] >= UPLOADS_PER_ADDRESS:
            raise too_many(f"your network is sending {UPLOADS_PER_ADDRESS} requests already; wait for one of them")
        self._uploads[address] += 1
        try:
            received = await asyncio.wait_for(_received(request), UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise too_slow(f"the request was not complete after {UPLOAD_SECONDS:g} seconds; send less") from None
        finally:
            self._uploads[address] -= 1
            self._uploads += Counter()  # forgets addresses that send nothing
        async with self._readers:
            try:
                yield await _read(received, request)
            finally:
                if isinstance(received, FormData):
                    await received.close()

    def _session(self, request: Request) -> Session | None:
        return self.sessions.find(request.cookies.get(COOKIE, ""))

    def _job(self, request: Request, key: str) -> Job:
        return self.sessions.job(self._session(request), key)

    def _described(self, job: Job) -> dict[str, Any]:
        """A job as plain values."""
        position, wait = self.queue.position(job)
        plain: dict[str, Any] = {"job": job.key, "phase": job.phase}
        if job.phase == "waiting":
            plain |= {"position": position, "wait": round(wait, 1)}
        progress = job.progress
        if progress is not None and not job.outcome:
            left = None if math.isinf(progress.seconds_left) else round(progress.seconds_left, 1)
            plain |= {"share": round(progress.share, 4), "seconds_left": left, "previews": list(progress.previews)}
        if job.outcome is not None:
            plain["facts"] = job.outcome.facts
            plain["images"] = [
                {
                    "url": f"api/jobs/{job.key}/images/{place}.png",
                    "name": image.name,
                    "caption": image.caption,
                    "seed": image.seed,
                    "height": image.size[0],
                    "width": image.size[1],
                }
                for place, image in enumerate(job.outcome.images)
            ]
        return {**plain, "error": job.error} if job.error else plain


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


async def _received(request: Request) -> FormData | bytes:
    """A request's body, whole. Raises `SmaltiError` for a body that is neither JSON nor a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await request.form(max_files=8, max_fields=8, max_part_size=MAX_JSON_BYTES)
    if kind != "application/json":
        raise SmaltiError("a request is JSON or a form of the type multipart/form-data; set the content type")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_JSON_BYTES:
            raise too_large(f"JSON has at most {MAX_JSON_BYTES // 1024} KiB; send images and maps as files of a form")
    return body


async def _read(received: FormData | bytes, request: Request) -> Submission:
    """A body -> its fields and files."""
    query = dict(request.query_params)
    if isinstance(received, bytes):
        return Submission(_json(received), {}, query)
    files: dict[str, Upload] = {}
    for name, value in received.items():
        if isinstance(value, UploadFile):
            files[name] = Upload(_plain_name(value.filename or name), await value.read())
    text = received.get("job")
    return Submission(_json(text) if isinstance(text, str) else None, files, query)


def _json(text: str | bytes) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise SmaltiError('the job is not JSON; send an object such as {"settings": {"seed": 3}}') from error


def _plain_name(name: str) -> str:
    """The name of an uploaded file -> its last part, printable, of at most 80 characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[-80:] or "file"


def error_body(message: str) -> Mapping[str, str]:
    """The JSON of an error."""
    return {"error": message}

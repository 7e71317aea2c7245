"""Serve the page of a model. The page loads nothing from other machines and sends nothing to them."""

from __future__ import annotations

import base64
import html
import json
import secrets
import socket
import threading
import time
import webbrowser
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

from smalti.core.devices import pick_device
from smalti.core.errors import SmaltiError
from smalti.hub.pretrained import resolve_model_path
from smalti.pipeline import Pipeline
from smalti.web.limits import Limits, Refusal, too_large
from smalti.web.studio import Studio

if TYPE_CHECKING:
    from fastapi import FastAPI

INSTALL = "the page needs packages that are not installed; install them with: pip install 'smalti[web]'"
USER = "smalti"  # user name with a password
FIRST_PORT, PORTS = 7860, 100

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The content security policy: scripts, styles, images and requests of this server alone, in no frame of another."""
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@final
class Guard:
    """ASGI middleware: security headers on each response, a password where there is one, no requests from pages of
    other servers, and no body larger than the limit."""

    def __init__(self, app: Application, *, password: str | None, most: int) -> None:
        """`most`: bytes of a body."""
        self._app, self._most = app, most
        self._login = base64.b64encode(f"{USER}:{password}".encode()) if password else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most:
                raise self._excess()
            return message

        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            status, text, more = refusal
            await _respond(guarded_send, status, text, more)
        else:
            await self._app(scope, counted_receive, guarded_send)

    def _refusal(
        self, scope: Scope, headers: MutableMapping[bytes, bytes]
    ) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        """The status, message and headers of a refused request, None for one that goes on."""
        if self._login:
            kind, _, login = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"basic" or not secrets.compare_digest(login.strip(), self._login):
                return 401, "this page needs a password", [(b"www-authenticate", b'Basic realm="smalti"')]
        origin = headers.get(b"origin", b"")
        is_foreign = origin and origin.partition(b"://")[2] != headers.get(b"host", b"")
        if is_foreign and scope["method"] not in ("GET", "HEAD"):
            return 403, "pages of other servers may not use this one", []
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._most:
            return 413, str(self._excess()), [(b"connection", b"close")]
        return None

    def _excess(self) -> Refusal:
        return too_large(f"a request has at most {self._most // 2**20} MiB with all its files; scale the image down")


async def _respond(send: Send, status: int, message: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"error": message}).encode()
    kind = (b"content-type", b"application/json")
    await send({"type": "http.response.start", "status": status, "headers": [kind, *headers]})
    await send({"type": "http.response.body", "body": body})


@final
class Server:
    """A running server of the page at `address`."""

    def __init__(self, studio: Studio, *, app: FastAPI, listener: socket.socket, host: str, close: Callable[[], None]):
        import uvicorn

        self.studio, self._close = studio, close
        config = uvicorn.Config(
            app,
            log_level="warning",
            lifespan="off",
            limit_concurrency=512,
            timeout_graceful_shutdown=2,
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="smalti-web", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.02)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        name = f"[{shown}]" if ":" in shown else shown
        self.address = f"http://{name}:{listener.getsockname()[1]}/"

    def open_browser(self) -> None:
        """Show the page in the user's browser."""
        webbrowser.open(self.address)

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(timeout=1.0)

    def close(self) -> None:
        """Stop the server, cancel all jobs, and remove what is on disk."""
        self._server.should_exit = True
        self._close()
        self._thread.join(timeout=10)


def check_packages() -> None:
    """Raise `SmaltiError` where the packages of the extra `web` are missing."""
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401 - used by fastapi
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise SmaltiError(INSTALL) from error


def make_app(studio: Studio, *, model: Path, password: str | None = None) -> tuple[FastAPI, Callable[[], None]]:
    """A studio and its model's folder -> the application, and the function that ends its worker.

    Raises `SmaltiError` where packages are missing.
    """
    check_packages()
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse
    from starlette.staticfiles import StaticFiles

    from smalti.web.api import Api
    from smalti.web.error_responses import add_error_handlers
    from smalti.web.examples import Examples, read_examples
    from smalti.web.jobs import JobQueue
    from smalti.web.sessions import Sessions

    examples = Examples(studio, read_examples(model))
    queue, sessions = JobQueue(studio.limits, idle=examples.next_task), Sessions(studio.limits)
    api = Api(studio, queue, sessions, examples)
    app = FastAPI(title="smalti", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(api.router)
    add_error_handlers(app)
    static = files("smalti.web").joinpath("static")
    index = static.joinpath("index.html").read_text("utf-8").replace("{{model}}", html.escape(studio.name))

    async def show_index() -> HTMLResponse:
        return HTMLResponse(index, headers={"cache-control": "no-cache"})

    app.add_api_route("/", show_index, methods=["GET", "HEAD"], response_model=None)
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    app.add_middleware(Guard, password=password, most=studio.limits.upload * 2**20)

    def close() -> None:
        queue.close()
        studio.close()

    return app, close


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens at the port, or at the next free one of `PORTS`; from `FIRST_PORT` on for None.

    Raises `SmaltiError` where all are taken or the host is not of this machine.
    """
    first = FIRST_PORT if port is None else port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    last: OSError | None = None
    for number in range(first, min(first + PORTS, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(256)
            return listener
        except OSError as error:
            listener.close()
            last = error
            if not isinstance(error, OSError) or error.errno not in _TAKEN:
                break
    raise SmaltiError(f"the page cannot be served at {host}, port {first}: {last}; choose another --host or --port")


_TAKEN = (13, 98, 48, 10048)  # errno: no permission, and address in use of Linux, macOS and Windows


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    password: str | None = None,
    limits: Limits | None = None,
    names: tuple[str, ...] = (),
    grid: tuple[int, int] | None = None,
    device: str = "auto",
) -> Server:
    """Serve the page of a pipeline's folder; it is there when this returns, and as long as the `Server` is not closed.

    `port` is the first one to try; None starts at 7860. With a `password` one logs in as the user "smalti". `names` are
    those of a segmentation's labels, `grid` as in `Pipeline.from_pretrained`. Raises `SmaltiError` where packages are
    missing, for a model that is none, and where no port is free.
    """
    check_packages()
    pipeline = Pipeline.from_pretrained(model, grid=grid).to(pick_device(device))
    folder = resolve_model_path(model)
    studio = Studio(pipeline, limits or Limits(), name=folder.resolve().name, names=names)
    listener = listen(host, port)
    app, close = make_app(studio, model=folder, password=password)
    return Server(studio, app=app, listener=listener, host=host, close=close)

"""Serve the page of a model. The page loads nothing from other machines and sends nothing to them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

from smalti.core.devices import pick_device
from smalti.core.errors import SmaltiError
from smalti.pipeline import Pipeline
from smalti.web.requests import Limits
from smalti.web.sessions import Sessions
from smalti.web.studio import Studio

if TYPE_CHECKING:
    import gradio as gr

INSTALL = "the page needs gradio, which is not installed; install it with: pip install 'smalti[web]'"
USER = "smalti"  # user name with a password

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'"
)
"""The content security policy: only this server. Gradio needs inline scripts."""

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@final
class ContentSecurityPolicy:
    """ASGI middleware that adds `POLICY` to the headers of each response."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._app(scope, receive, guarded)


@final
class Server:
    """A running server of the page at `address`."""

    def __init__(self, address: str, page: gr.Blocks, sessions: Sessions) -> None:
        self.address, self._page, self._sessions = address, page, sessions

    def wait(self) -> None:
        """Serve until Ctrl-C, and close."""
        try:
            self._page.block_thread()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the server, and delete the images of all sessions."""
        self._page.close(verbose=False)
        self._sessions.close()


def serve(
    model: str | Path,
    *,
    host: str | None = None,
    port: int | None = None,
    password: str | None = None,
    limits: Limits | None = None,
    names: tuple[str, ...] = (),
    grid: tuple[int, int] | None = None,
    device: str = "auto",
) -> Server:
    """Serve the page of a pipeline's folder; it is there when this returns, and as long as the `Server` is not closed.

    `host` and `port` None are gradio's: those of the environment, 127.0.0.1 and the first free port from 7860 on. With
    a `password` one logs in as the user "smalti". `names` are those of a segmentation's labels, `grid` as in
    `Pipeline.from_pretrained`. Raises `SmaltiError` where gradio is not installed, for a model that is none, and for a
    port that is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported, too
    try:
        import gradio as gr
        from starlette.middleware import Middleware
    except ImportError as error:
        raise SmaltiError(INSTALL) from error
    from smalti.web.actions import Actions
    from smalti.web.page import Page

    chosen = limits or Limits()
    pipeline = Pipeline.from_pretrained(model, grid=grid).to(pick_device(device))
    sessions = Sessions(chosen)
    page = Page(Actions(Studio(pipeline, chosen, name=Path(model).resolve().name, names=names), sessions)).blocks
    page.queue(max_size=chosen.waiting, default_concurrency_limit=4)
    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            auth=(USER, password) if password else None,
            share=False,
            prevent_thread_lock=True,
            quiet=True,
            max_file_size=chosen.upload * 2**20,
            state_session_capacity=chosen.sessions,
            ssr_mode=False,
            theme=gr.themes.Base(
                primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "monospace"]
            ),
            css=files("smalti.web").joinpath("studio.css").read_text("utf-8"),
            footer_links=[],
            app_kwargs={"middleware": [Middleware(ContentSecurityPolicy)]},
        )
    except OSError as error:
        sessions.close()
        raise SmaltiError(f"the page cannot be served: {error}; choose another --port") from error

    return Server(address, page, sessions)

"""From a model's folder to a page that is served: nothing of it comes from, or goes to, any other machine."""

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
from smalti.web.sessions import Visitors
from smalti.web.studio import Studio

if TYPE_CHECKING:
    import gradio as gr

INSTALL = "the page needs gradio, which is not installed; install it with: pip install 'smalti[web]'"
USER = "smalti"  # who logs in where there is a password

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; object-src 'none'"
)
"""What the browser is allowed to load: what this server gives. Gradio builds its components by inline scripts."""

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]


@final
class Guarded:
    """An ASGI application with `POLICY` among the headers of each answer."""

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
class Served:
    """A page that is served at `address`."""

    def __init__(self, address: str, page: gr.Blocks, visitors: Visitors) -> None:
        self.address, self._page, self._visitors = address, page, visitors

    def wait(self) -> None:
        """Serve until Ctrl-C, and close."""
        try:
            self._page.block_thread()
        finally:
            self.close()

    def close(self) -> None:
        """End it, and remove all images of its visitors."""
        self._page.close(verbose=False)
        self._visitors.close()


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
) -> Served:
    """Serve the page of a pipeline's folder; it is there when this returns, and as long as the `Served` is not closed.

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
    visitors = Visitors(chosen)
    page = Page(Actions(Studio(pipeline, chosen, name=Path(model).resolve().name, names=names), visitors)).blocks
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
            state_session_capacity=chosen.visitors,
            ssr_mode=False,
            theme=gr.themes.Base(
                primary_hue="teal", neutral_hue="stone", font=fonts, font_mono=["ui-monospace", "monospace"]
            ),
            css=files("smalti.web").joinpath("studio.css").read_text("utf-8"),
            footer_links=[],
            app_kwargs={"middleware": [Middleware(Guarded)]},
        )
    except OSError as error:
        visitors.close()
        raise SmaltiError(f"the page cannot be served: {error}; choose another --port") from error

    return Served(address, page, visitors)

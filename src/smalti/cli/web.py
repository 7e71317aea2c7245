"""`smalti web`: serve the web page, which generates images and shows them while they are decoded."""

from __future__ import annotations

from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.model_options import GridOption, ModelArgument, announce_default, grid_option
from smalti.hub.bundled_models import SCENES


def web(
    model: ModelArgument = SCENES,
    host: Annotated[
        str, typer.Option(help="Address to bind: 127.0.0.1 for this machine only, 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="First port to try; the next free one of a hundred is used. 0 starts at 7860."
        ),
    ] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")] = False,
    password: Annotated[
        str | None,
        typer.Option(envvar="SMALTI_PASSWORD", help="Password for the user name smalti; none by default."),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Names of the segmentation labels in order, separated by commas.")
    ] = None,
    max_side: Annotated[int, typer.Option(min=8, help="Maximum image side in pixels.")] = 1024,
    max_codes: Annotated[int, typer.Option(min=1, help="Maximum codes per request, over all its images.")] = 16384,
    max_count: Annotated[int, typer.Option(min=1, help="Maximum images per request.")] = 8,
    max_upload: Annotated[int, typer.Option(min=1, help="Maximum size of a request with its files in MiB.")] = 20,
    max_waiting: Annotated[int, typer.Option(min=1, help="Maximum jobs that wait.")] = 32,
    grid: GridOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Serve a web page to generate, inpaint and outpaint images. Ctrl-C stops it."""
    from smalti.cli.generation_output import stopped_by_sigterm
    from smalti.web.limits import Limits
    from smalti.web.server import serve

    announce_default(model)
    limits = Limits(side=max_side, codes=max_codes, count=max_count, upload=max_upload, waiting=max_waiting)
    with stopped_by_sigterm():
        served = serve(
            model,
            host=host,
            port=port or None,
            password=password,
            limits=limits,
            names=tuple(name.strip() for name in names.split(",")) if names else (),
            grid=grid_option(grid),
            device=device,
        )
        try:
            CONSOLE.print(f"the web page is at {served.address} (Ctrl-C stops it)", soft_wrap=True)
            if open_browser:
                served.open_browser()
            served.wait()
        finally:
            served.close()

"""`smalti web`: the studio, a page on which images are asked for and watched while they are laid."""

from __future__ import annotations

from typing import Annotated

import typer

from smalti.cli.console import CONSOLE
from smalti.cli.model_options import Grid, Model, grid_option, tell_default
from smalti.hub.bundled_models import SCENES


def web(
    model: Model = SCENES,
    host: Annotated[
        str, typer.Option(help="Where the page is to be seen from: 127.0.0.1 this machine, 0.0.0.0 all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The first of a hundred that is free; 0 for 7860.")] = 0,
    password: Annotated[
        str | None,
        typer.Option(envvar="SMALTI_PASSWORD", help="Asked of everybody, with the user name smalti."),
    ] = None,
    names: Annotated[
        str | None, typer.Option(help="Names of a segmentation's labels, in order, with commas between them.")
    ] = None,
    most_side: Annotated[int, typer.Option(min=8, help="Pixels of the longest side that may be asked for.")] = 1024,
    most_codes: Annotated[int, typer.Option(min=1, help="Codes of all images of a request.")] = 16384,
    most_count: Annotated[int, typer.Option(min=1, help="Images of a request.")] = 8,
    most_upload: Annotated[int, typer.Option(min=1, help="MiB of a file that is loaded.")] = 20,
    most_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait for their turn.")] = 32,
    grid: Grid = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Open the studio: a page to lay images, erase in them and extend them. Ctrl-C ends it."""
    from smalti.web.requests import Limits
    from smalti.web.server import serve

    tell_default(model)
    limits = Limits(side=most_side, codes=most_codes, count=most_count, upload=most_upload, waiting=most_waiting)
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
    CONSOLE.print(f"the studio is open at {served.address} (Ctrl-C ends it)", soft_wrap=True)
    served.wait()

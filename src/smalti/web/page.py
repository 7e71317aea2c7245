"""The page: its controls in one column, the image beside them, and which function each button calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import gradio as gr
from gradio.utils import get_upload_folder

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.web import rendering
from smalti.web.actions import SIDES, Actions, Seen, told
from smalti.web.code_images import as_text, colors
from smalti.web.mask_editor import Canvas
from smalti.web.requests import Part, from_link, link, smallest

MODES = ("New", "Erase or extend", "A photo in codes")
OPEN = "The model chooses"
BEGIN = "Choose what you like on the left, and press Lay."
FEW = 16  # names that are shown at once
HOLD = "(query) => { window.history.replaceState(null, '', query); return window.location.href; }"
ERASING = (("Keep", "#888888"), ("Erase", "#e0563b"))
MASK_HINT = "Paint over what is to be laid anew."
MAP_HINT = "Paint what is to be where, or leave it empty: then the model chooses."


WILDER = "Below 1 safer, above 1 wilder; 0 takes the likeliest tile."
LIKELIEST = "Among the k likeliest tiles; 0 among all."
TOGETHER = "Among the likeliest that sum to p."
FOLLOWED = "How strongly the class or the map is followed; 1 is as trained."


class PartControls(NamedTuple):
    """The controls of a condition: what is chosen, painted or written, and a file that may be loaded."""

    part: Part
    main: Any
    file: Any = None
    canvas: Canvas | None = None


@final
class Page:
    """The page of a studio; `blocks` is what gradio serves."""

    def __init__(self, actions: Actions) -> None:
        self.actions, self.studio = actions, actions.studio
        with gr.Blocks(
            title="smalti", analytics_enabled=False, fill_width=True, delete_cache=(3600, 24 * 3600)
        ) as self.blocks:
            self._head()
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=4, min_width=340):
                    self._controls()
                with gr.Column(scale=7, min_width=340):
                    self._images()
            self._wire()

    def _head(self) -> None:
        pipeline = self.studio.pipeline
        height, width = pipeline.default_size
        f, size = pipeline.tokenizer.factor, pipeline.tokenizer.size
        gr.HTML(
            f"<h1>{self.studio.name}</h1><p>Images laid of {size} kinds of tiles, {f} x {f} pixels each, learned at "
            f"{height} x {width}.</p>",
            elem_id="head",
            js_on_load=None,
        )

    def _controls(self) -> None:
        self.mode = gr.Radio(MODES, value=MODES[0], show_label=False, container=False, elem_id="mode")
        with gr.Column(visible=False) as self.erasing:
            self._erasing()
        with gr.Column(visible=False) as self.looking:
            self.photo = gr.File(label="An image of yours", file_count="single", height=120, elem_id="photo")
        with gr.Column() as self.wishes:
            self.parts = [self._part(part) for part in self.studio.parts]
            self._settings()
            with gr.Row(elem_id="act"):
                self.start = gr.Button("Lay", variant="primary", elem_id="lay")
                self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")

    def _erasing(self) -> None:
        f = self.studio.pipeline.tokenizer.factor
        height, width = self.studio.pipeline.default_size
        self.image = gr.File(label="The image", file_count="single", height=120, elem_id="image")
        self.newest = gr.Button("Take the newest image", size="sm", elem_id="newest")
        self.ground = Canvas(ERASING, first=1, size=(height, width), hint=MASK_HINT, name="mask")
        self.mask = self.ground.component
        with gr.Row():
            self.side = gr.Dropdown(list(SIDES), value=next(iter(SIDES)), label="Extend", elem_id="side")
            self.amount = gr.Slider(
                f,
                self.studio.limits.side // 2 // f * f,
                value=width // 2 // f * f,
                step=f,
                label="by pixels",
                buttons=[],
                elem_id="amount",
            )

    def _part(self, part: Part) -> PartControls:
        title = part.key.capitalize()
        if part.way == "choose":
            choices = [(OPEN, ""), *((name, name) for name in part.names)]
            kind = gr.Radio if len(part.names) <= FEW else gr.Dropdown
            return PartControls(part, kind(choices, value="", label=title, elem_id=part.key))
        if part.way == "write":
            return PartControls(part, gr.Textbox(label=title, elem_id=part.key))
        if part.way == "paint":
            labels, size = list(zip(part.names, part.colors, strict=True)), self.studio.pipeline.default_size
            canvas = Canvas(labels, first=min(1, len(labels) - 1), size=size, hint=MAP_HINT, name=part.key)
            load = gr.UploadButton(f"Load a {part.key}", size="sm", elem_id=f"{part.key}-file")
            return PartControls(part, canvas.component, load, canvas)
        what = "a JSON file" if part.way == "list" else "an image file"
        return PartControls(part, None, gr.File(label=f"{title}, {what}", height=120, elem_id=f"{part.key}-file"))

    def _settings(self) -> None:
        pipeline, limits = self.studio.pipeline, self.studio.limits
        f, most, (height, width) = pipeline.tokenizer.factor, limits.side, pipeline.default_size
        least = smallest(pipeline)
        small: dict[str, Any] = {"buttons": [], "min_width": 130}
        with gr.Row():
            tall = gr.Slider(least[0], most // f * f, value=height, step=f, label="Height", elem_id="height", **small)
            wide = gr.Slider(least[1], most // f * f, value=width, step=f, label="Width", elem_id="width", **small)
        with gr.Row():
            count = gr.Slider(1, limits.count, value=1, step=1, label="Images", elem_id="count", **small)
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed", min_width=130)
        with gr.Accordion("How tiles are chosen", open=False):
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", info=WILDER, **small)
            top_k = gr.Slider(0, pipeline.tokenizer.size, value=0, step=1, label="Top-k", info=LIKELIEST, **small)
            top_p = gr.Slider(0, 1, value=1, step=0.01, label="Top-p", info=TOGETHER, **small)
            guidance = gr.Slider(0, 10, value=1, step=0.1, label="Guidance", info=FOLLOWED, **small)
        self.settings = {
            "height": tall, "width": wide, "count": count, "seed": seed,
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance,
        }  # fmt: skip

    def _images(self) -> None:
        self.stage = gr.HTML(rendering.waiting(BEGIN), elem_id="stage", js_on_load=None)
        self.gallery = gr.Gallery(
            label="Images of this visit", columns=6, height=180, object_fit="contain", fit_columns=False, format="png",
            buttons=["download"], interactive=False, elem_id="gallery", preview=False, visible=False,
        )  # fmt: skip
        self.address = gr.Textbox(
            label="Link to these settings", buttons=["copy"], interactive=False, visible=False, elem_id="link"
        )

    # --- what happens ----------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        laying: dict[str, Any] = {
            "concurrency_id": "laying", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        inputs = {self.mode, *self.settings.values(), self.image, self.mask, self.side, self.amount}
        inputs |= {control for one in self.parts for control in (one.main, one.file) if control is not None}
        buttons = [self.start, self.cancel]
        self.mode.change(self._mode, self.mode, [self.erasing, self.looking, self.wishes], **quick)
        begun = self.start.click(self._begin, inputs, [self.stage, *buttons, self.address], **quick)
        begun.success(None, self.address, self.address, js=HOLD, **quick)
        begun.success(self._lay, inputs, [self.stage, self.gallery], **laying).then(
            lambda: (gr.Button(interactive=True), gr.Button(interactive=False)), None, buttons, **quick
        )
        self.cancel.click(self._stop, None, self.cancel, **quick)
        self.photo.upload(self._look, self.photo, self.stage, **laying)
        reading = {**quick, "queue": True, "concurrency_id": "reading", "concurrency_limit": 2}
        size = [self.settings["height"], self.settings["width"]]
        gr.on([self.image.upload, self.image.clear], self._ground, [self.image, *size], self.mask, **reading)
        self.newest.click(self._newest, None, self.image, **quick).then(
            self._ground, [self.image, *size], self.mask, **reading
        )
        for one in self.parts:
            if one.canvas is not None:
                one.file.upload(self._loaded(one.part), [one.file, *size], one.main, **reading)
                self._on_size(partial(_fitted, one.canvas), size, one.main, **quick)
        self._on_size(self._ground, [self.image, *size], self.mask, **reading)
        restored = [*self.settings.values(), *(one.main for one in self.parts if one.part.way == "choose")]
        self.blocks.load(self._restore, None, [*restored, self.stage], **quick)
        self.blocks.unload(self._leave)
        self._functions()

    def _on_size(self, function: Any, inputs: list[Any], output: Any, **options: Any) -> None:
        gr.on([self.settings[name].change for name in ("height", "width")], function, inputs, output, **options)

    def _mode(self, mode: str) -> list[Any]:
        erase, look = mode == MODES[1], mode == MODES[2]
        return [gr.Column(visible=shown) for shown in (erase, look, not look)]

    def _values(self, data: Mapping[Any, Any]) -> dict[str, Any]:
        return {name: data[control] for name, control in self.settings.items()}

    def _given(self, data: Mapping[Any, Any]) -> dict[str, str | Path | None]:
        given: dict[str, str | Path | None] = {}
        for one in self.parts:
            file = data.get(one.file) if one.part.way in ("image", "list") else None
            given[one.part.key] = Path(file) if file else (data[one.main] if one.main is not None else None)
        return given

    def _begin(self, data: dict[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        """Before the request waits for its turn: the link, and Cancel can be pressed."""
        self.actions.visitors.visitor(_number(request)).stop.clear()
        plain = {name: value for name, value in self._values(data).items() if value is not None}
        chosen = {one.part.key: data[one.main] for one in self.parts if one.part.way == "choose" and data[one.main]}
        try:
            address = gr.Textbox(link(self.actions.checked(plain), chosen), visible=True)
        except SmaltiError:  # which is told when it is to be laid
            address = gr.skip()
        said = rendering.waiting("Waiting for its turn ...")
        return said, gr.Button(interactive=False), gr.Button(interactive=True), address

    def _lay(self, data: dict[Any, Any], request: gr.Request) -> Iterator[tuple[str, Any]]:
        """The stage and the gallery, as they change."""
        try:
            for seen in self._seen(data, request):
                kept = [tuple(map(str, one)) for one in seen.kept]
                yield seen.stage, gr.Gallery(kept, visible=True) if seen.new else gr.skip()
        except gr.Error as error:
            yield rendering.waiting(error.message), gr.skip()

    def _seen(self, data: dict[Any, Any], request: gr.Request) -> Iterator[Seen]:
        number, values, given = _number(request), self._values(data), self._given(data)
        if data[self.mode] != MODES[1]:
            yield from self.actions.lay(number, values, given)
            return
        image = Path(data[self.image]) if data[self.image] else None
        yield from self.actions.complete(
            number,
            values,
            given,
            image=image,
            erased=data[self.mask] or "",
            side=data[self.side],
            amount=int(data[self.amount]),
        )

    def _stop(self, request: gr.Request) -> Any:
        self.actions.visitors.visitor(_number(request)).stop.set()
        return gr.Button(interactive=False)

    def _leave(self, request: gr.Request) -> None:
        self.actions.visitors.leave(_number(request))

    def _look(self, file: str | None) -> str:
        try:
            return self.actions.reconstruct(Path(file) if file else None)
        except gr.Error as error:
            return rendering.waiting(error.message)

    def _ground(self, file: str | None, height: int, width: int) -> Any:
        """The image to erase in, below its canvas."""
        address = ""
        if file:
            with told():
                pixels = colors(self.studio.image(Path(file), (height, width)))
            address = as_text(pixels, side=rendering.WHOLE)
        return self.ground.fitted((height, width), address)

    def _newest(self, request: gr.Request) -> str:
        kept = self.actions.visitors.visitor(_number(request)).kept
        with told():
            if not kept:
                raise SmaltiError("no image has been laid in this visit yet; lay one, or load one")
        return str(kept[0].path)

    def _loaded(self, part: Part) -> Any:
        def load(file: str, height: int, width: int) -> Any:
            with told():
                return gr.HTML(self.studio.canvas(part.key, Path(file), (height, width)))

        return load

    def _restore(self, request: gr.Request) -> list[Any]:
        """What the address of the page asks for. One that asks for nothing changes nothing: a person may have begun
        already."""
        query, nothing = dict(request.query_params), gr.skip()
        chosen = [one.part for one in self.parts if one.part.way == "choose"]
        left = [nothing] * (len(self.settings) + len(chosen))
        if not query.keys() & {*self.settings, *(part.key for part in chosen)}:
            return [*left, nothing]
        try:
            found, classes = from_link(self.studio.pipeline, query, self.studio.parts, self.studio.limits)
        except SmaltiError as error:
            return [*left, rendering.waiting(f"The link cannot be followed: {error}")]
        plain = as_mapping(found)
        return [*(plain[name] for name in self.settings), *(classes.get(part.key, "") for part in chosen), nothing]

    def _functions(self) -> None:
        """What `gradio_client` may call; see docs/studio.md."""
        laying: dict[str, Any] = {"concurrency_id": "laying", "concurrency_limit": 1}
        for function in (self.sample, self.complete, self.reconstruct):
            gr.api(function, api_name=function.__name__, **laying)
        gr.api(self.describe, api_name="describe", queue=False)

    def describe(self) -> dict[str, Any]:
        """What the model can be asked for, and how much."""
        return self.actions.described()

    def sample(self, settings: dict[str, Any], conditions: dict[str, Any], request: gr.Request) -> list[dict[str, Any]]:
        """Lays new images. Settings as in `Asked`: height, width, count, seed, ...; conditions by their keys."""
        return _files(self.actions.lay(self._client(request), settings, _told(conditions)))

    def complete(
        self,
        image: dict[str, Any],
        mask: dict[str, Any] | None,
        side: str,
        amount: int,
        settings: dict[str, Any],
        conditions: dict[str, Any],
        request: gr.Request,
    ) -> list[dict[str, Any]]:
        """Lays anew what is not black in the mask, an image file, and adds `amount` pixels on a side of the image."""
        given = _told({"image": image, "mask": mask})
        return _files(
            self.actions.complete(
                self._client(request),
                settings,
                _told(conditions),
                image=given["image"],
                erased=given["mask"] or "",
                side=side,
                amount=amount,
            )
        )

    def reconstruct(self, image: dict[str, Any]) -> dict[str, Any]:
        """An image -> its codes, row by row, and how near they bring it back, in decibels."""
        return self.actions.codes(_told({"image": image})["image"])

    def _client(self, request: gr.Request) -> str:
        number = _number(request)
        self.actions.visitors.visitor(number).stop.clear()
        return number


def _told(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a client gave by names, texts and files -> the same with the paths of the files that it has sent.

    Raises `gr.Error` for other files of this machine, whoever may have named them.
    """
    sent = Path(get_upload_folder()).resolve()
    files = {key: Path(str(one.get("path"))).resolve() for key, one in given.items() if isinstance(one, Mapping)}
    with told():
        for key, path in files.items():
            if not path.is_relative_to(sent):
                raise SmaltiError(f"the {key} is not a file that was sent here; send it with handle_file")
    return {**given, **files}


def _files(seen: Iterator[Seen]) -> list[dict[str, Any]]:
    """What is seen while images are laid -> the images that came of it, the first first."""
    *_, last = seen
    return [gr.FileData(path=str(path)).model_dump() for path, _ in reversed(last.kept[: last.new])]


def _fitted(canvas: Canvas, height: int, width: int) -> Any:
    return canvas.fitted((height, width), "")


def _number(request: gr.Request) -> str:
    """The page's number for its visitor; of one without a session nothing is kept apart."""
    return str(request.session_hash)

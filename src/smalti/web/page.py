"""The page: controls in one column, images beside them, and the event handlers."""

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
from smalti.web.actions import SIDES, Actions, PageUpdate, user_errors
from smalti.web.code_images import as_text, colors
from smalti.web.mask_editor import MaskEditor
from smalti.web.requests import ConditionInput, from_link, link, smallest

MODES = ("Generate", "Edit: inpaint / outpaint", "Reconstruct")
UNCONDITIONAL = "Unconditional"
START_MESSAGE = "Choose conditions and settings on the left, then press Generate."
MAX_RADIO_CHOICES = 16  # more names are shown in a dropdown
UPDATE_ADDRESS = "(query) => { window.history.replaceState(null, '', query); return window.location.href; }"
MASK_LABELS = (("Keep", "#888888"), ("Generate", "#e0563b"))
MASK_HINT = "Paint over the region to generate."
MAP_HINT = "Paint a label map, or leave it empty for unconditional generation."


TEMPERATURE_INFO = "0 always takes the most likely code."
TOP_K_INFO = "Sample from the k most likely codes; 0 from all."
TOP_P_INFO = "Sample from the most likely codes that sum to p."
GUIDANCE_INFO = "Classifier-free guidance scale; 1 applies none."


class PartControls(NamedTuple):
    """The controls of a condition: its main input, its file input and its mask editor."""

    part: ConditionInput
    main: Any
    file: Any = None
    editor: MaskEditor | None = None


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
            f"<h1>{self.studio.name}</h1><p>Codebook of {size} codes, {f} x {f} pixels per code, trained at "
            f"{height} x {width}.</p>",
            elem_id="head",
            js_on_load=None,
        )

    def _controls(self) -> None:
        self.mode = gr.Radio(MODES, value=MODES[0], show_label=False, container=False, elem_id="mode")
        with gr.Column(visible=False) as self.edit_controls:
            self._edit_controls()
        with gr.Column(visible=False) as self.reconstruct_controls:
            self.photo = gr.File(label="Image", file_count="single", height=120, elem_id="photo")
        with gr.Column() as self.generation_controls:
            self.parts = [self._part(part) for part in self.studio.parts]
            self._settings()
            with gr.Row(elem_id="act"):
                self.start = gr.Button("Generate", variant="primary", elem_id="generate")
                self.cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")

    def _edit_controls(self) -> None:
        f = self.studio.pipeline.tokenizer.factor
        height, width = self.studio.pipeline.default_size
        self.image = gr.File(label="Image", file_count="single", height=120, elem_id="image")
        self.newest = gr.Button("Use the newest image", size="sm", elem_id="newest")
        self.mask_editor = MaskEditor(MASK_LABELS, first=1, size=(height, width), hint=MASK_HINT, name="mask")
        self.mask = self.mask_editor.component
        with gr.Row():
            self.side = gr.Dropdown(list(SIDES), value=next(iter(SIDES)), label="Extend", elem_id="side")
            self.amount = gr.Slider(
                f,
                self.studio.limits.side // 2 // f * f,
                value=width // 2 // f * f,
                step=f,
                label="Pixels",
                buttons=[],
                elem_id="amount",
            )

    def _part(self, part: ConditionInput) -> PartControls:
        title = part.key.capitalize()
        if part.kind == "choice":
            choices = [(UNCONDITIONAL, ""), *((name, name) for name in part.names)]
            kind = gr.Radio if len(part.names) <= MAX_RADIO_CHOICES else gr.Dropdown
            return PartControls(part, kind(choices, value="", label=title, elem_id=part.key))
        if part.kind == "text":
            return PartControls(part, gr.Textbox(label=title, elem_id=part.key))
        if part.kind == "paint":
            labels, size = list(zip(part.names, part.colors, strict=True)), self.studio.pipeline.default_size
            editor = MaskEditor(labels, first=min(1, len(labels) - 1), size=size, hint=MAP_HINT, name=part.key)
            load = gr.UploadButton(f"Load a {part.key}", size="sm", elem_id=f"{part.key}-file")
            return PartControls(part, editor.component, load, editor)
        what = "a JSON file" if part.kind == "json" else "an image file"
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
        with gr.Accordion("Sampling settings", open=False):
            temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature", info=TEMPERATURE_INFO, **small)
            top_k = gr.Slider(0, pipeline.tokenizer.size, value=0, step=1, label="Top-k", info=TOP_K_INFO, **small)
            top_p = gr.Slider(0, 1, value=1, step=0.01, label="Top-p", info=TOP_P_INFO, **small)
            guidance = gr.Slider(0, 10, value=1, step=0.1, label="Guidance", info=GUIDANCE_INFO, **small)
        self.settings = {
            "height": tall, "width": wide, "count": count, "seed": seed,
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance,
        }  # fmt: skip

    def _images(self) -> None:
        self.stage = gr.HTML(rendering.waiting(START_MESSAGE), elem_id="stage", js_on_load=None)
        self.gallery = gr.Gallery(
            label="Gallery", columns=6, height=180, object_fit="contain", fit_columns=False, format="png",
            buttons=["download"], interactive=False, elem_id="gallery", preview=False, visible=False,
        )  # fmt: skip
        self.address = gr.Textbox(
            label="Link to these settings", buttons=["copy"], interactive=False, visible=False, elem_id="link"
        )

    # --- events ----------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        generating: dict[str, Any] = {
            "concurrency_id": "generating", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private",
        }  # fmt: skip
        inputs = {self.mode, *self.settings.values(), self.image, self.mask, self.side, self.amount}
        inputs |= {control for one in self.parts for control in (one.main, one.file) if control is not None}
        buttons = [self.start, self.cancel]
        self.mode.change(
            self._mode, self.mode, [self.edit_controls, self.reconstruct_controls, self.generation_controls], **quick
        )
        begun = self.start.click(self._begin, inputs, [self.stage, *buttons, self.address], **quick)
        begun.success(None, self.address, self.address, js=UPDATE_ADDRESS, **quick)
        begun.success(self._generate, inputs, [self.stage, self.gallery], **generating).then(
            lambda: (gr.Button(interactive=True), gr.Button(interactive=False)), None, buttons, **quick
        )
        self.cancel.click(self._stop, None, self.cancel, **quick)
        self.photo.upload(self._reconstruct, self.photo, self.stage, **generating)
        reading = {**quick, "queue": True, "concurrency_id": "reading", "concurrency_limit": 2}
        size = [self.settings["height"], self.settings["width"]]
        gr.on([self.image.upload, self.image.clear], self._edit_mask, [self.image, *size], self.mask, **reading)
        self.newest.click(self._newest, None, self.image, **quick).then(
            self._edit_mask, [self.image, *size], self.mask, **reading
        )
        for one in self.parts:
            if one.editor is not None:
                one.file.upload(self._loaded(one.part), [one.file, *size], one.main, **reading)
                self._on_size(partial(_fitted, one.editor), size, one.main, **quick)
        self._on_size(self._edit_mask, [self.image, *size], self.mask, **reading)
        restored = [*self.settings.values(), *(one.main for one in self.parts if one.part.kind == "choice")]
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
            file = data.get(one.file) if one.part.kind in ("image", "json") else None
            given[one.part.key] = Path(file) if file else (data[one.main] if one.main is not None else None)
        return given

    def _begin(self, data: dict[Any, Any], request: gr.Request) -> tuple[Any, ...]:
        """Before the request is queued: show the link and enable Cancel."""
        self.actions.sessions.session(_session_id(request)).stop.clear()
        plain = {name: value for name, value in self._values(data).items() if value is not None}
        chosen = {one.part.key: data[one.main] for one in self.parts if one.part.kind == "choice" and data[one.main]}
        try:
            address = gr.Textbox(link(self.actions.parse(plain), chosen), visible=True)
        except SmaltiError:  # generation reports it
            address = gr.skip()
        message = rendering.waiting("Queued ...")
        return message, gr.Button(interactive=False), gr.Button(interactive=True), address

    def _generate(self, data: dict[Any, Any], request: gr.Request) -> Iterator[tuple[str, Any]]:
        """Updates of the image area and of the gallery."""
        try:
            for update in self._updates(data, request):
                images = [tuple(map(str, one)) for one in update.gallery]
                yield update.stage, gr.Gallery(images, visible=True) if update.new else gr.skip()
        except gr.Error as error:
            yield rendering.waiting(error.message), gr.skip()

    def _updates(self, data: dict[Any, Any], request: gr.Request) -> Iterator[PageUpdate]:
        number, values, given = _session_id(request), self._values(data), self._given(data)
        if data[self.mode] != MODES[1]:
            yield from self.actions.generate(number, values, given)
            return
        image = Path(data[self.image]) if data[self.image] else None
        yield from self.actions.complete(
            number,
            values,
            given,
            image=image,
            mask=data[self.mask] or "",
            side=data[self.side],
            amount=int(data[self.amount]),
        )

    def _stop(self, request: gr.Request) -> Any:
        self.actions.sessions.session(_session_id(request)).stop.set()
        return gr.Button(interactive=False)

    def _leave(self, request: gr.Request) -> None:
        self.actions.sessions.leave(_session_id(request))

    def _reconstruct(self, file: str | None) -> str:
        try:
            return self.actions.reconstruct(Path(file) if file else None)
        except gr.Error as error:
            return rendering.waiting(error.message)

    def _edit_mask(self, file: str | None, height: int, width: int) -> Any:
        """Show an image in the mask editor."""
        address = ""
        if file:
            with user_errors():
                pixels = colors(self.studio.image(Path(file), (height, width)))
            address = as_text(pixels, side=rendering.FINAL_SIDE)
        return self.mask_editor.fitted((height, width), address)

    def _newest(self, request: gr.Request) -> str:
        gallery = self.actions.sessions.session(_session_id(request)).gallery
        with user_errors():
            if not gallery:
                raise SmaltiError("the gallery is empty; generate an image, or load one")
        return str(gallery[0].path)

    def _loaded(self, part: ConditionInput) -> Any:
        def load(file: str, height: int, width: int) -> Any:
            with user_errors():
                return gr.HTML(self.studio.canvas(part.key, Path(file), (height, width)))

        return load

    def _restore(self, request: gr.Request) -> list[Any]:
        """The settings in the page's URL; one without settings changes nothing."""
        query, nothing = dict(request.query_params), gr.skip()
        chosen = [one.part for one in self.parts if one.part.kind == "choice"]
        left = [nothing] * (len(self.settings) + len(chosen))
        if not query.keys() & {*self.settings, *(part.key for part in chosen)}:
            return [*left, nothing]
        try:
            found, classes = from_link(self.studio.pipeline, query, self.studio.parts, self.studio.limits)
        except SmaltiError as error:
            return [*left, rendering.waiting(f"Invalid link: {error}")]
        plain = as_mapping(found)
        return [*(plain[name] for name in self.settings), *(classes.get(part.key, "") for part in chosen), nothing]

    def _functions(self) -> None:
        """The API functions for `gradio_client`; see docs/studio.md."""
        generating: dict[str, Any] = {"concurrency_id": "generating", "concurrency_limit": 1}
        for function in (self.sample, self.complete, self.reconstruct):
            gr.api(function, api_name=function.__name__, **generating)
        gr.api(self.describe, api_name="describe", queue=False)

    def describe(self) -> dict[str, Any]:
        """The model's sizes, conditions and limits."""
        return self.actions.describe()

    def sample(self, settings: dict[str, Any], conditions: dict[str, Any], request: gr.Request) -> list[dict[str, Any]]:
        """Generates images. Settings as in `SamplingRequest`: height, width, count, seed, ...; conditions by their
        keys."""
        return _files(self.actions.generate(self._client(request), settings, _uploaded(conditions)))

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
        """Generates what is not black in the mask, an image file, and `amount` pixels on a side of the image."""
        given = _uploaded({"image": image, "mask": mask})
        return _files(
            self.actions.complete(
                self._client(request),
                settings,
                _uploaded(conditions),
                image=given["image"],
                mask=given["mask"] or "",
                side=side,
                amount=amount,
            )
        )

    def reconstruct(self, image: dict[str, Any]) -> dict[str, Any]:
        """An image -> its codes, row by row, and the PSNR of its reconstruction in dB."""
        return self.actions.codes(_uploaded({"image": image})["image"])

    def _client(self, request: gr.Request) -> str:
        number = _session_id(request)
        self.actions.sessions.session(number).stop.clear()
        return number


def _uploaded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a client by name, texts and files -> the same with the paths of uploaded files.

    Raises `gr.Error` for other files of this machine.
    """
    sent = Path(get_upload_folder()).resolve()
    files = {key: Path(str(one.get("path"))).resolve() for key, one in given.items() if isinstance(one, Mapping)}
    with user_errors():
        for key, path in files.items():
            if not path.is_relative_to(sent):
                raise SmaltiError(f"the {key} is not an uploaded file; upload it with handle_file")
    return {**given, **files}


def _files(update: Iterator[PageUpdate]) -> list[dict[str, Any]]:
    """Updates of the page -> the generated images, the first first."""
    *_, last = update
    return [gr.FileData(path=str(path)).model_dump() for path, _ in reversed(last.gallery[: last.new])]


def _fitted(editor: MaskEditor, height: int, width: int) -> Any:
    return editor.fitted((height, width), "")


def _session_id(request: gr.Request) -> str:
    """The id of a session; requests without a session share one."""
    return str(request.session_hash)

"""The page: its controls, and which step of a `Session` each of them takes.

Gradio's editor is the canvas. Pictures, bars and tables are plain HTML, whose bytes lie in the page itself.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from slime_bench.app import html, jobs, paint
from slime_bench.app.jobs import Stopped
from slime_bench.app.session import EXAMPLES, METHODS, PRESETS, Session
from slime_bench.data.label_maps import RGB
from slime_bench.errors import ConfigError, SlimeBenchError

Updates = dict[Any, Any]
_JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, "show_progress": "hidden"}
_QUICK: dict[str, Any] = {"concurrency_limit": 8, "show_progress": "hidden"}
_log = logging.getLogger(__name__)

_INK, _PALE, _BLUE, _RED = "#374151", "#d1d5db", "#1d4ed8", "#b91c1c"
THEME = gr.themes.Default(
    primary_hue="blue", neutral_hue="gray", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    button_primary_background_fill=_BLUE, button_primary_background_fill_dark=_BLUE,
    button_cancel_background_fill=_RED, button_cancel_background_fill_dark=_RED,
    button_cancel_text_color="white", button_cancel_text_color_dark="white",
    block_info_text_color=_INK, block_info_text_color_dark=_PALE,
    block_label_text_color=_INK, block_label_text_color_dark=_PALE,
    body_text_color_subdued=_INK, body_text_color_subdued_dark=_PALE,
)  # fmt: skip
"""System fonts, and colours with contrast in light and dark."""
INTRO = """# Paint the parts in one picture, get them in the others
Everything stays on this machine: nothing is sent anywhere, and what you load is removed when the page is stopped."""
CSS = """
.gradio-container { max-width: 1100px !important; margin: 0 auto !important; }
.said, .failed, .progress { padding: 8px 12px; border-radius: 6px; border: 1px solid var(--border-color-primary); }
.failed { border: 2px solid #c2410c; }
.failed dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 6px 0 0; }
.failed dt { font-weight: 600; } .failed dd { margin: 0; overflow-wrap: anywhere; }
.progress progress { width: 100%; height: 14px; accent-color: #2563eb; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 0; }
.swatch { display: inline-block; width: 14px; height: 14px; margin-right: 6px; border: 1px solid currentColor;
  vertical-align: -2px; }
.html-container { padding: 0 !important; }
.picture img { max-width: 100%; max-height: 640px; display: block; } .picture, .curve { margin: 0; }
.curve svg { width: 100%; height: 120px; border: 1px solid var(--border-color-primary); }
.areas { overflow: auto; max-height: 420px; } .areas table { border-collapse: collapse; }
.areas table, .areas tr, .areas th, .areas td { border: 0 !important; }
.areas th, .areas td { padding: 3px 10px !important; text-align: right; white-space: nowrap; }
.areas tbody tr { border-top: 1px solid var(--border-color-primary) !important; }
.areas th[scope=row] { text-align: left; font-weight: 400; }
a.download { display: inline-block; padding: 8px 16px; border-radius: 6px; background: #1d4ed8; color: #fff !important;
  text-decoration: none; font-weight: 600; }
"""
TAKE_BRUSH = """(name) => {
  const parts = [...document.querySelectorAll(".legend li")], at = parts.find((one) => one.dataset.name === name);
  const colors = parts.map((one) => one.dataset.colour), erase = document.querySelector("#editor [aria-label=Erase]");
  if (erase?.classList.contains("highlight")) document.querySelector("#editor [aria-label=Brush]")?.click();
  const brush = {default_size: 16, colors, default_color: at.dataset.colour, color_mode: "fixed"};
  return {__type__: "update", brush};
}"""
"""In the browser, so that no stroke is faster than its colour."""


class Page:
    """The controls and what they do.

    Args:
        address: of the archive of a session, see `server`.
    """

    def __init__(self, address: Callable[[Session], str]) -> None:
        self.address = address
        with gr.Blocks(
            title="slime-bench: parts by example", analytics_enabled=False, delete_cache=(3600, 86400)
        ) as self.blocks:
            self.session = gr.State(None, delete_callback=_closed)
            gr.Markdown(INTRO)
            self._pictures()
            self._paint()
            self._learn()
            self._others()
            self._keep()
            self._wire()
        self.blocks.queue()

    # The controls

    def _pictures(self) -> None:
        gr.Markdown("## 1. Pictures and classes")
        with gr.Row():
            with gr.Column(min_width=300):
                self.files = gr.File(
                    label="Pictures: one or several", file_count="multiple", height=140, elem_id="files"
                )
            with gr.Column(min_width=300):
                self.example = gr.Button(f"Take the mini example ({EXAMPLES} drawn cars)")
                self.names = gr.Textbox(
                    label="Classes: names of the parts, with commas", placeholder="body, wheel, window",
                    info="One colour for each; press Enter to take them over. What is not painted is background.",
                    elem_id="names",
                )  # fmt: skip
        self.said1 = gr.HTML(padding=False, elem_id="said1")

    def _paint(self) -> None:
        gr.Markdown("## 2. Paint")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                self.photo = gr.Dropdown(label="Picture to paint", choices=[], interactive=True, elem_id="photo")
                self.brush = gr.Radio(label="Paint this class", choices=[], elem_id="brush")
                self.legend = gr.HTML(padding=False)
                self.mask = gr.UploadButton("Load a mask instead", size="sm")
                self.own_mask = gr.Button("Use the example's own mask", size="sm")
            with gr.Column(scale=3, min_width=300):
                self.editor = gr.ImageEditor(
                    label="Paint the parts; the eraser takes paint away", image_mode="RGBA", type="numpy", format="png",
                    sources=(), transforms=(), layers=False, brush=_brush([]), eraser=gr.Eraser(default_size=16),
                    elem_id="editor", buttons=["fullscreen"], height=560, canvas_size=(paint.VIEW, paint.VIEW),
                )  # fmt: skip
        self.said2 = gr.HTML(padding=False, elem_id="said2")

    def _learn(self) -> None:
        gr.Markdown("## 3. Learn")
        with gr.Row():
            self.method = gr.Radio([(name, key) for key, name in METHODS.items()], value="slime", label="Method")
            self.preset = gr.Radio([*PRESETS], value="mini", label="Preset")
        self.expected = gr.HTML(html.said(jobs.expectation("slime", "mini")), padding=False)
        with gr.Accordion("More settings", open=False):
            self.overrides = gr.Textbox(
                label="Overrides of the configuration", placeholder="method.max_steps=100 data.fit=pad",
                info="key=value, with blanks between them, as on the command line", elem_id="overrides",
            )  # fmt: skip
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        with gr.Row():
            self.learn = gr.Button("Learn", variant="primary", elem_id="learn")
            self.stop = gr.Button("Stop learning", variant="stop", interactive=False)
        with gr.Row():
            with gr.Column(min_width=300):
                self.said3 = gr.HTML(padding=False, elem_id="said3")
                self.curve = gr.HTML(padding=False, elem_id="curve")
            with gr.Column(min_width=300):
                self.preview = gr.HTML(padding=False, elem_id="preview")

    def _others(self) -> None:
        gr.Markdown("## 4. The other pictures")
        self.more = gr.File(label="Add the other pictures", file_count="multiple", height=140, elem_id="more")
        with gr.Row():
            self.find = gr.Button("Find the parts", variant="primary", elem_id="find")
            self.stop_finding = gr.Button("Stop finding", variant="stop", interactive=False)
        self.said4 = gr.HTML(padding=False, elem_id="said4")
        with gr.Column(visible=False) as self.results:
            with gr.Row():
                with gr.Column(scale=1, min_width=260):
                    self.result = gr.Dropdown(label="Result", choices=[], interactive=True)
                    self.shown = gr.CheckboxGroup(label="Show these classes", choices=[], elem_id="shown")
                    self.opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity of the colours")
                    self.correct = gr.Button("Correct this result by painting", elem_id="correct")
                with gr.Column(scale=3, min_width=300):
                    self.view = gr.HTML(padding=False, elem_id="view")
            self.areas = gr.HTML(padding=False, elem_id="areas")

    def _keep(self) -> None:
        gr.Markdown("## 5. Keep it")
        with gr.Column(elem_id="keep"):
            self.link = gr.HTML("<p>The archive is here once something is learned.</p>", padding=False, elem_id="link")
            self.load = gr.UploadButton("Load an embeddings file (.safetensors)", size="sm")
            self.said5 = gr.HTML(padding=False, elem_id="said5")

    # What they do

    def _wire(self) -> None:
        session, editor = self.session, self.editor
        canvas = [self.names, self.photo, self.brush, self.legend, editor]
        done = [self.said4, self.results, self.result, self.shown, self.view, self.areas, self.link]

        def on(event: Any, done_by: Any, told: Any, inputs: list[Any], outputs: list[Any], **options: Any) -> None:
            event(
                _told(done_by, told), [session, *inputs], [told, *(one for one in outputs if one is not told)],
                api_visibility="private", **(options or _QUICK),
            )  # fmt: skip

        self.blocks.load(lambda: Session(), None, session, api_visibility="private", show_progress="hidden")
        on(self.files.upload, self._add(self.files, self.said1), self.said1, [self.files], [self.files, *canvas])
        on(self.more.upload, self._add(self.more, self.said4), self.said4, [self.more], [self.more, *canvas])
        on(self.example.click, self._on_example, self.said1, [editor], canvas)
        for event in (self.names.submit, self.names.blur):
            on(event, self._on_names, self.said1, [self.names, editor], canvas)
        on(self.photo.input, self._on_photo, self.said2, [self.photo, editor], canvas)
        self.brush.input(None, self.brush, editor, js=TAKE_BRUSH, api_visibility="private", **_QUICK)
        on(editor.clear, self._step(self.said2, Session.clear_paint), self.said2, [], canvas)
        on(self.mask.upload, self._step(self.said2, Session.load_mask), self.said2, [self.mask], canvas)
        on(self.own_mask.click, self._step(self.said2, Session.take_example_mask), self.said2, [], canvas)
        for choice in (self.method, self.preset):
            on(choice.change, self._on_choice, self.expected, [self.method, self.preset], [])
        settings = [self.names, editor, self.method, self.preset, self.overrides, self.seed]
        told = [self.curve, self.preview, self.learn, self.stop, self.expected, *canvas, *done]
        learn = self._as_job(self._on_learn, self.learn, self.stop, self.said3, "what was learned before")
        on(self.learn.click, learn, self.said3, settings, told, **_JOB)
        find = self._as_job(self._on_find, self.find, self.stop_finding, self.said4, "what was found")
        on(self.find.click, find, self.said4, [editor], [self.find, self.stop_finding, *done], **_JOB)
        for button in (self.stop, self.stop_finding):
            button.click(_stop, session, queue=False, api_visibility="private")
        looks = [self.result, self.shown, self.opacity]
        for look in (self.result.input, self.shown.input, self.opacity.release):
            on(look, self._on_look, self.said4, looks, [self.view])
        on(self.correct.click, self._on_correct, self.said2, [self.result], [*canvas, *done])
        on(self.load.upload, self._on_load, self.said5, [self.load], [*canvas, *done])

    def _add(self, source: Any, told: Any) -> Callable[[Session, list[str] | None], Updates]:
        def add(session: Session, files: list[str] | None) -> Updates:
            first = session.current is None
            try:
                text = html.said(session.add_pictures([Path(each) for each in files or []]))
            except SlimeBenchError as error:
                text = html.failed(error)
            canvas = self._canvas(session) if first else {self.photo: _choices(session)}
            return {source: None, told: text, **canvas}

        return add

    def _on_example(self, session: Session, painted: Any) -> Updates:
        session.keep_paint(_layers(painted))
        return {self.said1: html.said(session.take_example()), **self._canvas(session)}

    def _on_names(self, session: Session, text: str, painted: Any) -> Updates:
        if not (text and text.strip()) or text == ", ".join(session.classes[1:]):
            return {self.said1: gr.skip()}
        session.keep_paint(_layers(painted))
        session.name_classes(text)
        return {self.said1: "", **self._canvas(session)}

    def _on_photo(self, session: Session, name: str, painted: Any) -> Updates:
        session.keep_paint(_layers(painted))
        session.open(name)
        return {self.said2: "", **self._canvas(session)}

    def _step(self, told: Any, step: Callable[..., str | None]) -> Callable[..., Updates]:
        """A handler that takes a step of the session, tells what that says, and shows the canvas anew."""

        def handler(session: Session, *values: Any) -> Updates:
            return {told: html.said(step(session, *values) or ""), **self._canvas(session)}

        return handler

    def _on_choice(self, session: Session, method: str, preset: str) -> Updates:
        return {self.expected: html.said(jobs.expectation(method, preset))}

    def _on_learn(
        self, session: Session, names: str, painted: Any, method: str, preset: str, overrides: str, seed: float
    ) -> Iterator[Updates]:
        session.keep_paint(_layers(painted))
        if names and names.strip() and names != ", ".join(session.classes[1:]):
            session.name_classes(names)
        support = session.support()
        table = html.learned_from(support.classes.table())
        yield {self.said3: table, self.curve: "", self.preview: ""}
        seen: Any = None
        for at in session.learn(method, preset, (overrides or "").split(), int(seed or 0)):
            update: Updates = {self.said3: html.progress(at, "step") + table, self.curve: html.curve(at.losses)}
            if at.preview is not None and at.preview is not seen:
                seen = at.preview
                words = "found in the painted picture" + (f" after step {at.done}" if at.total else "")
                update[self.preview] = html.picture(session.preview(at.preview), words)
            yield update
        text = f"Learned from {len(support.names)} picture(s) in {jobs.duration(at.elapsed)}."
        expected = {self.expected: html.said(jobs.expectation(method, preset))}
        yield {self.said3: html.said(text) + table, **expected, **self._done(session)}

    def _on_find(self, session: Session, painted: Any) -> Iterator[Updates]:
        session.keep_paint(_layers(painted))
        yield {self.said4: ""}
        for at in session.segment():
            yield {self.said4: html.progress(at, "picture"), **self._done(session)}
        text = html.said(f"{len(session.records)} picture(s) segmented in {jobs.duration(at.elapsed)}.")
        yield {self.said4: text + "".join(map(html.failed, session.failures.values())), **self._done(session)}

    def _as_job(self, job: Callable[..., Iterator[Updates]], start: Any, stop: Any, told: Any, kept: str) -> Any:
        """`job`, while which the button `start` is off, and that which stops it is on; `kept` is said where it was."""

        def handler(session: Session, *values: Any) -> Iterator[Updates]:
            busy, free = (
                {start: gr.Button(interactive=not on), stop: gr.Button(interactive=on)} for on in (True, False)
            )
            yield busy
            try:
                yield from job(session, *values)
            except Stopped:
                yield {told: html.said(f"Stopped; {kept} is kept.")}
            except Exception:
                yield free
                raise
            yield free

        return handler

    def _on_look(self, session: Session, name: str | None, shown: list[str], opacity: float) -> Updates:
        return {self.said4: gr.skip(), self.view: _look(session, name, shown, opacity)}

    def _on_correct(self, session: Session, name: str | None) -> Updates:
        if name is None or name not in session.records:
            raise ConfigError(
                "there is no result to correct", path="Result", found="none chosen", expected="a segmented picture",
                remedy="choose one of the results",
            )  # fmt: skip
        text = session.correct(name)
        session.open(name)
        return {self.said2: html.said(text), **self._canvas(session), **self._done(session)}

    def _on_load(self, session: Session, file: str) -> Updates:
        text = session.load(file)
        return {self.said5: html.said(text), **self._canvas(session), **self._done(session)}

    # What they show

    def _canvas(self, session: Session) -> Updates:
        """Classes, the choice of pictures, and the picture that is painted with its paint."""
        names = ", ".join(session.classes[1:])
        parts = [*session.classes[1:]]
        updates: Updates = {
            self.names: names,
            self.photo: _choices(session),
            self.brush: gr.Radio(choices=parts, value=parts[0] if parts else None),
            self.legend: html.legend(session.classes, session.colours),
        }
        name = session.current or next(iter(session.photos), None)
        if name is not None:
            view, layer = session.open(name)
            updates[self.photo] = _choices(session)
            value: Any = {"background": view, "layers": [layer], "composite": None}
            updates[self.editor] = gr.ImageEditor(value=value, brush=_brush(session.colours[1:]))
        return updates

    def _done(self, session: Session) -> Updates:
        """The results so far."""
        names, segmenter = [*session.records], session.segmenter
        if segmenter is None:
            return {}
        parts = [*segmenter.classes[1:]]
        updates: Updates = {
            self.results: gr.Column(visible=bool(names)),
            self.link: html.download(self.address(session), len(names)),
            self.areas: html.areas([*session.records.values()], segmenter.classes, segmenter.colours),
        }
        if names:
            updates[self.result] = gr.Dropdown(choices=names, value=names[0])
            updates[self.shown] = gr.CheckboxGroup(choices=parts, value=parts)
            updates[self.view] = _look(session, names[0], parts, 0.6)
        return updates


def _told(done_by: Callable[..., Any], told: Any) -> Callable[..., Iterator[Updates]]:
    """A handler whose errors are shown in `told`, in words."""

    @functools.wraps(done_by)
    def handler(session: Session | None, *values: Any) -> Iterator[Updates]:
        if session is None:
            yield {told: html.said("The page is still starting: try again in a second.")}
            return
        try:
            done = done_by(session, *values)
            if isinstance(done, dict):
                yield done
            else:
                yield from done
        except SlimeBenchError as error:
            yield {told: html.failed(error)}
        except Exception as error:
            _log.exception("the page could not do what was asked")
            yield {told: html.failed(error)}

    return handler


def _closed(session: Session | None) -> None:
    if session is not None:
        session.close()


def _stop(session: Session) -> None:
    session.stop.set()


def _choices(session: Session) -> Any:
    return gr.Dropdown(choices=[*session.photos], value=session.current)


def _brush(colours: Sequence[RGB]) -> gr.Brush:
    shown: list[Any] = [paint.hexed(colour) for colour in colours] or ["#808080"]
    return gr.Brush(default_size=16, colors=shown, default_color=shown[0], color_mode="fixed")


def _layers(painted: Any) -> list[Any]:
    return [] if painted is None else [*painted["layers"]]


def _look(session: Session, name: str | None, shown: Sequence[str], opacity: float) -> str:
    if name is None or session.photos[name].record is None:
        return ""
    words = f"{name} with {', '.join(shown) or 'no class'}"
    return html.picture(session.overlay(name, shown, opacity), words)

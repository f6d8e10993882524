"""What the page shows as HTML: messages, the bar, the curve, tables, pictures. All text is escaped here."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import PurePath

from PIL import Image

from slime_bench.app.jobs import Progress, duration
from slime_bench.app.paint import hexed
from slime_bench.data.label_maps import RGB
from slime_bench.errors import SlimeBenchError
from slime_bench.results.environment import without_home
from slime_bench.segment.confidence import UNSURE, doubtful
from slime_bench.segment.folder import Record
from slime_bench.segment.output import percent

_CURVE = (320, 120)
_POINTS = 400


def nameless(text: str) -> str:
    """A text without the folders of this machine: `/home/me/car.png` is `car.png`."""
    return re.sub(r"(?<![\w.:/-])~?/(?:[^\s/'\",;:]+/)+", "", str(without_home(text)))


def said(text: str) -> str:
    """A message that all went well."""
    return f'<p class="said" role="status">{escape(text)}</p>' if text else ""


def failed(error: BaseException) -> str:
    """An error in the words of the command line; one that nobody has foreseen as one sentence."""
    if not isinstance(error, SlimeBenchError):
        return (
            f'<p class="failed" role="alert">Something unexpected went wrong ({escape(type(error).__name__)}): '
            "the terminal in which the page was started says more, and what was done before is kept.</p>"
        )
    where = None if error.path is None else str(error.path)
    if where is not None and PurePath(where).is_absolute():  # its folders may have blanks
        where = PurePath(where).name
    rows = [("where", where), ("found", error.found), ("expected", error.expected), ("what to do", error.remedy)]
    lines = [f"<dt>{name}</dt><dd>{escape(nameless(str(text)))}</dd>" for name, text in rows if text not in (None, "")]
    summary = escape(nameless(error.summary))
    return f'<div class="failed" role="alert"><p><strong>{summary}</strong></p><dl>{"".join(lines)}</dl></div>'


def progress(at: Progress, unit: str) -> str:
    """A bar with its numbers in words."""
    known = f' max="{at.total}" value="{at.done}"' if at.total else ""
    parts = [at.stage, f"{unit} {at.done} of {at.total}" if at.total else "", f"{duration(at.elapsed)} so far"]
    if at.left is not None and at.left > 0:
        parts.append(f"about {duration(at.left)} left")
    text = escape(", ".join(part for part in parts if part))
    return f'<div class="progress"><progress aria-label="{escape(at.stage)}"{known}></progress><p>{text}</p></div>'


def curve(losses: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps, as a line."""
    if len(losses) < 2:
        return ""
    every = max(1, len(losses) // _POINTS)
    kept = [*losses[::every], losses[-1]]
    (width, height), last = _CURVE, kept[-1][0]
    low, high = min(loss for _, loss in kept), max(loss for _, loss in kept)
    span = (high - low) or 1.0
    points = " ".join(f"{width * step / last:.1f},{height * (1 - (loss - low) / span):.1f}" for step, loss in kept)
    words = f"loss {kept[0][1]:.3f} at step {kept[0][0]}, {kept[-1][1]:.3f} at step {last}"
    return (
        f'<figure class="curve"><svg viewBox="-4 -4 {width + 8} {height + 8}" role="img" aria-label="{words}" '
        f'preserveAspectRatio="none"><polyline points="{points}" fill="none" stroke="currentColor" '
        f'vector-effect="non-scaling-stroke" stroke-width="1.5"/></svg><figcaption>{words}</figcaption></figure>'
    )


def picture(image: Image.Image, words: str) -> str:
    """A picture inside the page itself, described by `words`."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    described = escape(words, quote=True)
    return (
        f'<figure class="picture"><img src="data:image/jpeg;base64,{data}" alt="{described}">'
        f"<figcaption>{described}</figcaption></figure>"
    )


def legend(names: Sequence[str], colours: Sequence[RGB]) -> str:
    """The classes in their colours."""
    entries = zip(names[1:], colours[1:], strict=True)
    items = [
        f'<li data-name="{escape(name)}" data-colour="{hexed(colour)}">{_swatch(colour)}{escape(name)}</li>'
        for name, colour in entries
    ]
    return f'<ul class="legend" aria-label="Classes and their colours">{"".join(items)}</ul>'


def _swatch(colour: RGB) -> str:
    return f'<span class="swatch" style="background:{hexed(colour)}"></span>'


def areas(records: Sequence[Record], names: Sequence[str], colours: Sequence[RGB]) -> str:
    """The classes' parts of every picture, as a table; what does not convince is marked."""
    if not records:
        return ""
    heads = zip(names[1:], colours[1:], strict=True)
    head = "".join(f'<th scope="col">{_swatch(colour)}{escape(name)}</th>' for name, colour in heads)
    lines, marked = [], False
    for record in records:
        sure = record.confidence or [None] * len(names)
        cells = ""
        for count, one in zip(record.pixels[1:], sure[1:], strict=True):
            doubted = bool(count) and one is not None and one < UNSURE
            marked |= doubted
            cells += f"<td>{percent(count / sum(record.pixels))}{' ?' if doubted else ''}</td>"
        nothing = record.confidence is not None and doubtful(record.confidence)
        doubt = " (nothing here convinces)" if nothing else ""
        lines.append(f'<tr><th scope="row">{escape(record.file)}{doubt}</th>{cells}</tr>')
    note = "<p>? : its scores are low beside those of the painted pictures; it may not be there.</p>" if marked else ""
    return _table("Areas", f'<th scope="col">picture</th>{head}', "".join(lines), note)


def learned_from(rows: Sequence[tuple[str, ...]]) -> str:
    """What will be learned: the table that the command line shows before it learns."""
    cells = [(name, "".join(f"<td>{escape(text)}</td>" for text in rest)) for _, _, name, *rest in rows]
    body = "".join(f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>' for name, rest in cells)
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("class", "pixels", "share"))
    return _table("What is painted", f"{heads}<td></td>", body)


def _table(label: str, head: str, body: str, note: str = "") -> str:
    return (
        f'<div class="areas" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>{note}</div>"
    )


def download(address: str, pictures: int) -> str:
    """The link to the archive."""
    what = f"label maps, overlays and areas of {pictures} picture(s), and the embeddings"
    return (
        f'<p><a class="download" href="{escape(address)}" download="slime-bench.zip">Download everything (zip)</a> '
        f"{what}</p>"
    )

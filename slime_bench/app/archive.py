"""The archive that the page gives out, laid out as the folder of `slime-bench segment`."""

from __future__ import annotations

import io
import zipfile
from typing import Final

from slime_bench.app.session import Session
from slime_bench.segment import folder, output

PAINTED: Final = "painted"


def archive(session: Session) -> bytes:
    """A zip of label maps, overlays, areas, class list, painted masks and the embeddings.

    Raises:
        ConfigError: nothing learned.
    """
    segmenter = session.learned()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr(folder.EMBEDDINGS, segmenter.content())
        file.writestr(folder.CLASSES, output.class_list(segmenter.classes))
        file.writestr(folder.AREAS, output.areas_csv(session.records, segmenter.classes))
        for photo in session.photos.values():
            if photo.label is not None:
                file.writestr(f"{PAINTED}/{photo.stem}.png", output.label_png(photo.label, session.colours))
            if photo.record is not None:
                for name in (f"{folder.LABELS}/{photo.stem}.png", f"{folder.OVERLAYS}/{photo.stem}.jpg"):
                    file.write(session.place / "results" / name, name)
    return buffer.getvalue()

"""Cuts the small parity files of the second paper out of a golden folder; nothing is rounded or recomputed.

python -m tests.parity.make_infoscore_small ../shared/golden/infoscore tests/parity/data/infoscore_small
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import yaml

from tests.parity.golden_infoscore import Golden

SCORES = ("mean_image_entropy", "dataset_entropy", "entropy_ratio", "cov", "infoscore", "ranking")


def cut(source: Path, out: Path) -> None:
    golden = Golden(source)
    for kind in ("model", "images", "labels"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for path in golden.model.iterdir():
        shutil.copyfile(path, out / "model" / path.name)
    pairs = [line.split() for line in (source / "val_list.txt").read_text().splitlines()]
    for each in (name for pair in pairs for name in pair):
        shutil.copyfile(source / each, out / each)
    classes = golden.meta["classes"]
    words = {
        "template": "Image of {}.",
        "background": [classes[0]["name"], *classes[0]["related_word"]],
        "related": {each["name"]: each["related_word"] for each in classes[1:]},
    }
    (out / "prompts.yaml").write_text(yaml.safe_dump(words, sort_keys=False))
    scores = golden.arrays("infoscore")
    expected = {
        "size": golden.size[0],
        "images": [pair[0] for pair in pairs],
        "classes": [each["name"] for each in classes],
        "layers": [f"layer.{index}" for index in golden.top],
        "infoscore": {name: scores[name].tolist() for name in SCORES},
        "iou": {
            mode: {key: golden.arrays(f"iou_{mode}")[f"iou_{key}"].tolist() for key in ("crf", "nocrf")}
            for mode in golden.modes
        },
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    cut(Path(sys.argv[1]), Path(sys.argv[2]))

"""Prompt words: the bundled lists against their data sets and sources, the spans of any list, and bad files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_bench.data.mini_world.render import vocabulary
from slime_bench.errors import ConfigError
from slime_bench.methods.infoscore.prompts import PromptFile, bundled_prompts, read_prompts
from slime_bench.paths import config_dir

DATA = {
    "car": "pascal_part_car", "horse": "pascal_part_horse", "face": "celebamask_hq",
    "mini_car": "mini_car", "mini_horse": "mini_horse", "mini_face": "mini_face",
    "voc2012": "voc2012", "coco_object": "coco_object",
    "mini_two_subjects": "mini_two_subjects", "mini_tiny": "mini_tiny",
    "mini_granularity_car_coarse": "mini_granularity_car_coarse",
    "mini_granularity_car_fine": "mini_granularity_car_fine",
    "mini_granularity_horse_coarse": "mini_granularity_horse_coarse",
    "mini_granularity_horse_fine": "mini_granularity_horse_fine",
}  # fmt: skip
GOOD = """
template: Image of {}.
background: [sky, wall]
related: {wheel: [tyre, rim], window: [], neck+torso: [belly]}
names: {neck+torso: torso}
"""


def classes_of(data: str) -> list[str]:
    """As the data set's file lists them; a file without classes has those of the one it inherits from."""
    content = yaml.safe_load((config_dir() / "data" / f"{data}.yaml").read_text())
    return content.get("classes") or classes_of(content["defaults"][0])


def write(folder: Path, text: str) -> str:
    path = folder / "words.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- the bundled lists


def test_every_bundled_list_belongs_to_a_data_set() -> None:
    assert bundled_prompts() == sorted(DATA)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("multi", [False, True])
def test_bundled_lists_are_for_the_classes_of_their_data(name: str, multi: bool) -> None:
    file, classes = read_prompts(name), classes_of(DATA[name])
    assert set(file.related) == set(classes[1:])
    found = file.expand(classes, multi)
    assert len(found.spans) == len(classes)
    assert all(text.startswith("Image of ") and text.endswith(".") for text in found.texts)
    assert (len(found.texts) > len(file.background) + len(classes) - 1) == multi


@pytest.mark.parametrize(
    ("name", "single", "multi", "classes"), [("voc2012", 49, 116, 21), ("coco_object", 105, 179, 81)]
)
def test_the_authors_lists_have_the_authors_counts(name: str, single: int, multi: int, classes: int) -> None:
    """Numbers of the golden README, section 1."""
    known = classes_of(DATA[name])
    assert len(known) == classes
    assert [len(read_prompts(name).expand(known, each).texts) for each in (False, True)] == [single, multi]


@pytest.mark.parametrize("name", ["mini_car", "mini_horse", "mini_face"])
def test_mini_prompts_are_words_of_the_mini_world(name: str) -> None:
    texts = read_prompts(name).expand(classes_of(name), True).texts
    used = {word for text in texts for word in text.lower().replace(".", " .").split()}
    assert used <= set(vocabulary())


def test_the_shape_of_a_list(tmp_path: Path) -> None:
    file = read_prompts(write(tmp_path, GOOD))
    classes = ["background", "wheel", "neck+torso", "window"]
    single, multi = (file.expand(classes, each) for each in (False, True))
    assert single.texts == tuple(f"Image of {word}." for word in ("sky", "wall", "wheel", "torso", "window"))
    assert single.spans == ((0, 2), (2, 3), (3, 4), (4, 5))
    assert multi.texts[2:5] == ("Image of wheel.", "Image of tyre.", "Image of rim.")
    assert multi.spans == ((0, 2), (2, 5), (5, 7), (7, 8))


WORD = st.text("abcdefghij", min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORD, min_size=2, max_size=40, unique=True), st.integers(1, 6), st.booleans(), st.randoms())
def test_spans_partition_the_list_and_begin_with_the_name(words: list[str], count: int, multi: bool, draw) -> None:  # type: ignore[no-untyped-def]
    names, rest = words[: min(count, len(words) - 1)], words[min(count, len(words) - 1) :]
    background, related = [rest[0]], {name: [] for name in names}
    for word in rest[1:]:
        draw.choice([background, *related.values()]).append(word)
    file = PromptFile("a {} b", background, related)
    found = file.expand(["background", *names], multi)
    assert [place for start, end in found.spans for place in range(start, end)] == list(range(len(found.texts)))
    for name, (start, end) in zip([background[0], *names], found.spans, strict=True):
        assert found.texts[start] == f"a {name} b" and end > start
    assert len(set(found.texts)) == len(found.texts)
    assert len(found.texts) == (len(words) if multi else len(background) + len(names))


def test_the_hash_is_of_the_words(tmp_path: Path) -> None:
    first = read_prompts(write(tmp_path, GOOD)).content_hash()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert len(first) == 64
    other_order = GOOD.replace("{wheel: [tyre, rim], window: [],", "{window: [], wheel: [tyre, rim],")
    assert other_order != GOOD and read_prompts(write(moved, other_order)).content_hash() == first
    changed = [("Image", "Photo"), ("sky, wall", "wall, sky"), ("tyre, rim", "rim, tyre"), ("torso}", "trunk}")]
    assert len({first, *(read_prompts(write(tmp_path, GOOD.replace(*each))).content_hash() for each in changed)}) == 5


def test_words_that_differ_in_case_count_twice_within_a_class_only(tmp_path: Path) -> None:
    file = read_prompts(write(tmp_path, GOOD.replace("tyre, rim", "Tyre, tyre, Wheel")))
    assert len(file.expand(["background", "wheel"], True).texts) == 6
    with pytest.raises(ConfigError, match="share the word"):
        clash = read_prompts(write(tmp_path, GOOD.replace("belly", "TYRE")))
        clash.expand(["background", "wheel", "neck+torso"], False)


# --- an installed package


def test_lists_are_found_inside_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(config_dir(), tmp_path / "slime_bench" / "conf")
    monkeypatch.setattr(
        "slime_bench.methods.infoscore.prompts.config_dir", lambda: config_dir(tmp_path / "slime_bench")
    )
    file = read_prompts("voc2012")
    assert file.path.is_relative_to(tmp_path) and bundled_prompts() == sorted(DATA)


# --- bad files


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Image of {}.", "'{} and {}'", "exactly one"),
        ("Image of {}.", "'{0} of {}'", "exactly one"),
        ("template: Image of {}.", "", "`template` is missing"),
        ("[sky, wall]", "[]", "at least one noun"),
        ("[sky, wall]", "sky", "a valid list"),
        ("[sky, wall]", "[sky, ' ']", "non-empty"),
        ("[sky, wall]", "[sky, on]", "put the text in quotes"),
        ("related:", "relatd:", "did you mean `related`"),
        ("tyre, rim", "tyre, wheel", "`wheel` twice"),
        ("{neck+torso: torso}", "{neck: torso}", "classes that `related` has"),
        ("template", "\ttemplate", "cannot read"),
        (GOOD, "- a\n- b\n", "no mapping"),
    ],
)
def test_bad_files(old: str, new: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert words in str(caught.value) and path in str(caught.value.path)
    assert caught.value.found and caught.value.expected and caught.value.remedy


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `voc2012`") as caught:
        read_prompts("voc2021")
    assert "coco_object" in str(caught.value.expected)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("none.yaml", "binary.yaml"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_prompts(str(tmp_path / name))


def test_classes_without_words_and_shared_words(tmp_path: Path) -> None:
    file = read_prompts(write(tmp_path, GOOD))
    with pytest.raises(ConfigError) as caught:
        file.expand(["background", "wheel", "windows"], False)
    message = str(caught.value)
    assert "`windows`" in message and "wheel, window, neck+torso" in message and "nearest entry is `window`" in message
    for old, new in (("belly", "Rim"), ("belly", "SKY"), ("window: []", "window: [wheel]"), ("torso}", "window}")):
        clash = read_prompts(write(tmp_path, GOOD.replace(old, new)))
        with pytest.raises(ConfigError, match="two classes share") as caught:
            clash.expand(["background", "wheel", "window", "neck+torso"], False)
        assert "words.yaml" in str(caught.value.path)

"""Class lists as labelling tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from slime_bench.data.class_files import CLASS_FILES, ClassSpec, class_file_of, read_classes
from slime_bench.errors import ConfigError

PARTS = ("background", "body", "light", "plate", "wheel", "window")


@pytest.mark.parametrize(
    ("name", "text", "values", "coloured"),
    [
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,128,0::\nbody:128,0,0:a,b:\nhub:cap:0,0,1::\n",
            {"background": 0x008000, "body": 0x800000, "hub:cap": 1},
            True,
        ),
        ("_classes.csv", 'Pixel Value, Class\n0, background\n 3, "body, l"\n', {"background": 0, "body, l": 3}, False),
        ("label_names.txt", "_background_\nbody\n\nwheel\n", {"background": 0, "body": 1, "wheel": 2}, False),
        (
            "labels.txt",
            "__ignore__\n_background_\nfront wheel\n",
            {"background": 0, "front wheel": 1, "ignore": 255},
            False,
        ),
        ("classes.txt", "body\r\non\r\n", {"background": 0, "body": 1, "on": 2}, False),
        ("classes.txt", "body: 3\nwheel: 4\n", {"body": 3, "wheel": 4}, False),
        ("data.yaml", "nc: 1\ntrain: ../images\nnames: [body]\n", {"background": 0, "body": 1}, False),
        ("data.yaml", "names:\n  1: body\n  2: wheel\n", {"body": 1, "wheel": 2}, False),
        ("classes.yaml", "names: 1\nwheel: 2\n", {"names": 1, "wheel": 2}, False),
    ],
)  # fmt: skip
def test_files(tmp_path: Path, name: str, text: str, values: dict[str, int], coloured: bool) -> None:
    path = tmp_path / name
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + text.encode())
        assert read_classes(path) == ClassSpec(values, coloured, str(path))
        assert class_file_of(tmp_path) == path


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("classes.yaml", "body: 1\n".encode("utf-16"), "(?s)UTF-16.*save it as UTF-8"),
        ("labels.txt", "räder\n".encode("latin-1"), "(?s)another encoding.*save it as UTF-8"),
        ("labelmap.txt", b"body:0,0,128::\nwheel:red::\n", "(?s)wheel:red::.*as CVAT exports it"),
        ("labelmap.txt", b"body:0,0,128::\nbody:0,0,129::\n", "a line of its own"),
        ("labelmap.txt", b"body:0,0,128::\nwheel:0,0,300::\n", "wheel"),
        ("_classes.csv", b"Pixel Value, Class\nbody, 1\n", "(?s)body,1.*index, name"),
        ("_classes.csv", b"Pixel Value, Class\n1, body\n2, body\n", "index, name"),
        ("_classes.csv", b"", "a list of names"),
        ("labels.txt", b"body\nbody\n", "each of them once"),
        ("labels.txt", b"", "a list of names"),
        ("data.yaml", b"names: {0: body, 1: wheel}", "(?s)0 is the background.*body: 1.*body: 0"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_classes(path)
    assert str(caught.value.path) == str(path) and caught.value.remedy


def test_the_class_list_of_a_folder(tmp_path: Path) -> None:
    assert class_file_of(tmp_path) is None
    for name in CLASS_FILES[:2]:
        (tmp_path / name).write_text("body: 1")
    with pytest.raises(ConfigError, match=r"classes\.yaml and classes\.yml"):
        class_file_of(tmp_path)


@pytest.mark.parametrize("name", ["labelmap.txt", "_classes.csv", "label_names.txt", "roboflow/_classes.csv"])
def test_shared(shared: Path, name: str) -> None:
    spec = read_classes(shared / "inputs" / name)
    assert tuple(spec.values) == PARTS and spec.coloured == (name == "labelmap.txt")
    if spec.coloured:
        assert spec.values["wheel"] == 0x000080
    else:
        assert [*spec.values.values()] == list(range(6))


def test_shared_in_another_encoding(shared: Path) -> None:
    with pytest.raises(ConfigError, match="save it as UTF-8"):
        read_classes(shared / "inputs" / "classes_u16.yaml")

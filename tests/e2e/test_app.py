"""`slime-bench app` in a real browser: painting with the pointer, learning, results, the archive, loading it again."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slime_bench.colours import palette
from slime_bench.data.mini_world.render import render
from tests.e2e.test_report_page import SCHEMES, WIDTHS

FEW_STEPS = "method.max_steps=4"


def missing(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that is served; its process has no display, and must end at Ctrl-C without a trace."""
    pytest.importorskip("gradio") if os.environ.get("CI") != "true" else __import__("gradio")
    folder = tmp_path_factory.mktemp("served")
    place = {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "DISPLAY": ""}
    said = folder / "said.txt"
    with said.open("wb") as log:
        page = subprocess.Popen(
            [sys.executable, "-m", "slime_bench", "app", "--port", "7960"],
            cwd=Path(__file__).resolve().parents[2], env=os.environ | place, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            line = awaited(lambda: next((x for x in said.read_text().splitlines() if x.startswith("open ")), None), 120)
            yield line.split()[1]
            page.send_signal(2)
            assert page.wait(30) == 0 and "what was loaded into it is removed" in said.read_text()
            assert "Traceback" not in said.read_text() and [each.name for each in folder.iterdir()] == ["said.txt"]
        finally:
            if page.poll() is None:
                page.kill()


def awaited(what: Any, seconds: float = 60) -> Any:
    """The first true value of a call that is repeated."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := what():
            return value
        time.sleep(0.1)
    raise AssertionError(f"nothing came in {seconds} s")


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Chromium with WebGL in software, which the canvas is drawn with."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        missing("chromium and chromedriver are not there (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    flags = ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-extensions")
    for flag in (*flags, "use-angle=swiftshader", "enable-unsafe-swiftshader", "ignore-gpu-blocklist"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(chromedriver)))
    yield found
    found.quit()


class Visitor:
    """What a person does on the page."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def open(self, width: int = 1280, scheme: str = "light") -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.address)
        awaited(lambda: self.one("#learn"))

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, query: str) -> Any:
        return next(iter(self.driver.find_elements("css selector", query)), None)

    def text(self, query: str) -> str:
        return str(self.js("return document.querySelector(arguments[0])?.innerText ?? ''", query))

    def says(self, query: str, words: str, seconds: float = 60) -> str:
        try:
            awaited(lambda: words in self.text(query), seconds)
        except AssertionError:
            raise AssertionError(f"no {words!r} in {query}: {self.text(query)!r}") from None
        return self.text(query)

    def press(self, words: str) -> None:
        button = next(each for each in self.driver.find_elements("css selector", "button") if words in each.text)
        self.js("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()

    def type(self, query: str, text: str, end: str = "") -> None:
        field = self.one(f"{query} textarea, {query} input")
        field.clear()
        field.send_keys(text + end)

    def give(self, query: str, *files: Path) -> None:
        self.js(
            "const it = document.querySelector(arguments[0]); it.style.display = 'block'; it.hidden = false",
            f"{query} input[type=file]",
        )  # fmt: skip
        self.one(f"{query} input[type=file]").send_keys("\n".join(map(str, files)))

    def canvas(self) -> Any:
        canvas = awaited(lambda: self.one("#editor canvas"))
        self.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
        return canvas

    def choose(self, name: str) -> None:
        """Take a class's brush, and wait for its colour."""
        self.take(name, "#brush label")
        colour = "((it) => it && getComputedStyle(it).color)(document.querySelector('#editor [aria-label=Color]'))"
        wanted = self.js(
            "return getComputedStyle([...document.querySelectorAll('.legend li')].find((one) => one.dataset.name =="
            " arguments[0]).querySelector('.swatch')).backgroundColor", name,
        )  # fmt: skip
        awaited(lambda: self.js(f"return {colour}") == wanted)
        time.sleep(0.3)

    def take(self, name: str, query: str = "label") -> None:
        """Choose one of several."""
        label = next(x for x in self.driver.find_elements("css selector", query) if x.text.strip() == name)
        self.js("arguments[0].scrollIntoView({block: 'center'})", label)
        label.click()

    def stroke(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """A stroke with the pointer pressed, in pixels from the canvas's middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        action = ActionChains(self.driver, duration=20).move_to_element_with_offset(self.canvas(), *start)
        action.click_and_hold()
        for _ in range(2):
            action.move_by_offset(*((there - here) // 2 for here, there in zip(start, end, strict=True)))
        action.release().perform()

    def scale(self) -> float:
        """Pixels of the screen for one of the view that is painted on."""
        return float(self.text("#editor .zoom-number").rstrip("%\n ")) / 100

    def asked(self) -> set[str]:
        """Hosts that the browser has asked since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return {url.split("/")[2] for url in urls if not url.startswith(("data:", "blob:"))}


@pytest.fixture
def visitor(driver: Any, address: str) -> Visitor:
    driver.get_log("browser")
    driver.get_log("performance")
    return Visitor(driver, address)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos of mine")
    for index in range(3):
        Image.fromarray(render("car", "test", index).image).save(folder / f"photo{index}.png")
    return [folder / f"photo{index}.png" for index in range(3)]


def test_from_paint_to_the_archive_and_back(visitor: Visitor, photos: list[Path], tmp_path: Path) -> None:
    visitor.open()
    visitor.give("#files", photos[0])
    visitor.says("#said1", "1 pictures added")
    visitor.type("#names", "body, wheel", "\n")
    awaited(lambda: "wheel" in visitor.text(".legend"))
    visitor.choose("body")
    visitor.stroke((-150, -60), (150, -60))
    visitor.choose("wheel")
    visitor.stroke((-100, 100), (100, 100))
    visitor.one("#editor [aria-label=Erase]").click()
    visitor.stroke((50, -100), (50, 50))

    visitor.press("More settings")
    awaited(lambda: visitor.one("#overrides textarea, #overrides input"))
    visitor.type("#overrides", FEW_STEPS)
    visitor.press("Learn")
    visitor.says("#said3", "so far")
    visitor.says("#said3", "Learned from 1 picture(s)")
    assert "at step 4" in visitor.text("#curve") and visitor.one("#preview img").get_attribute("alt")

    visitor.give("#more", *photos[1:])
    visitor.says("#said4", "2 pictures added, 3 in all")
    visitor.press("Find the parts")
    visitor.says("#said4", "2 picture(s) segmented")
    before = awaited(lambda: visitor.one("#view img")).get_attribute("src")
    visitor.one("#shown input").click()
    awaited(lambda: visitor.one("#view img").get_attribute("src") != before)
    assert visitor.one("#view img").get_attribute("alt") == "photo1.png with wheel"
    assert [line.split()[0] for line in visitor.text("#areas tbody").splitlines()] == ["photo1.png", "photo2.png"]

    visitor.press("Correct this result")
    visitor.says("#said2", "photo1.png is now painted")
    visitor.choose("wheel")
    visitor.stroke((0, 0), (100, 0))
    visitor.type("#overrides", " ")
    visitor.take("feature kNN")
    visitor.press("Learn")
    visitor.says("#said3", "Learned from 2 picture(s)")
    visitor.press("Find the parts")
    visitor.says("#said4", "1 picture(s) segmented")

    link = visitor.one("#link a").get_attribute("href")
    with urllib.request.urlopen(link, timeout=30) as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert set(archive.namelist()) == {
        "embeddings.safetensors", "classes.yaml", "areas.csv", "painted/photo0.png", "painted/photo1.png",
        "labels/photo2.png", "overlays/photo2.jpg",
    }  # fmt: skip
    with Image.open(archive.open("painted/photo0.png")) as picture:
        painted, colours = np.array(picture), picture.getpalette()
    assert colours is not None and colours[:9] == palette(3).ravel().tolist()
    at = [round(64 + each / visitor.scale() / 800 * 128) for each in (-60, 0, 100, 50)]
    assert painted.shape == (128, 128) and painted[at[0], at[1]] == 1 and painted[at[2], at[1]] == 2
    assert painted[at[0], at[3]] == 0 and set(np.unique(painted)) == {0, 1, 2}  # erased, and no edge is soft
    private = [str(Path.home()).encode(), str(photos[0].parent).encode(), b"slime-bench-"]
    everything = b"".join(archive.read(name) for name in archive.namelist())
    assert not any(each in everything for each in private)
    shown = visitor.js("return document.body.innerText").encode()
    assert not any(each in shown for each in (*private, b"/tmp"))
    assert visitor.asked() == {visitor.address.removeprefix("http://")}

    (tmp_path / "car.safetensors").write_bytes(archive.read("embeddings.safetensors"))
    visitor.open()
    visitor.give("#files", photos[2])
    visitor.says("#said1", "1 pictures added")
    visitor.give("#keep", tmp_path / "car.safetensors")
    visitor.says("#said5", "Loaded: feature_knn, preset mini, classes body, wheel")
    visitor.press("Find the parts")
    visitor.says("#said4", "1 picture(s) segmented")
    with urllib.request.urlopen(visitor.one("#link a").get_attribute("href"), timeout=30) as answer:
        again = zipfile.ZipFile(io.BytesIO(answer.read()))
    assert again.read("labels/photo2.png") == archive.read("labels/photo2.png")
    severe = [each for each in visitor.driver.get_log("browser") if "Content Security" in each["message"]]
    assert severe == []


def test_errors_are_said_in_words(visitor: Visitor, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "words.jpg").write_text("no picture")
    visitor.open()
    visitor.press("Learn")
    visitor.says("#said3", "there is no picture to paint")
    visitor.give("#files", photos[0], tmp_path / "words.jpg")
    said = visitor.says("#said1", "1 of 2 files are no pictures")
    assert "words.jpg" in said and "what to do" in said and "/" not in said.partition("expected")[0]
    visitor.type("#names", "wheel, wheel", "\n")
    visitor.says("#said1", "one class name stands twice")
    visitor.type("#names", "wheel", "\n")
    awaited(lambda: "wheel" in visitor.text(".legend"))
    visitor.press("Learn")
    visitor.says("#said3", "nothing is painted yet")
    visitor.press("Find the parts")
    visitor.says("#said4", "nothing is learned yet")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    visitor.give("#keep", tmp_path / "x.safetensors")
    visitor.says("#said5", "not a readable state")


@pytest.mark.parametrize(("width", "scheme"), product(WIDTHS, SCHEMES))
def test_it_fits_and_every_control_has_a_name(visitor: Visitor, width: int, scheme: str) -> None:
    visitor.open(width, scheme)
    visitor.press("mini example")
    visitor.says("#said1", "pictures of the mini world")
    visitor.canvas()
    assert visitor.js("return document.documentElement.scrollWidth") <= width
    for query in ("#files", "#names", "#brush", "#editor", "#learn", "#find", "#keep"):
        left, right, height = visitor.js(
            "const it = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return [it.left, it.right, it.height]", query,
        )  # fmt: skip
        assert left >= 0 and right <= width and height > 20, query
    nodes = visitor.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {"button", "textbox", "combobox", "radio", "checkbox", "slider", "spinbutton", "link", "listbox"}
    controls = [node for node in nodes if not node.get("ignored") and node.get("role", {}).get("value") in roles]
    nameless = [node for node in controls if not node.get("name", {}).get("value")]
    assert len(controls) > 15 and nameless == []
    ground = visitor.js("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"[0-9]+", ground)[0]) > 128) == (scheme == "light")


def test_nobody_else_is_asked_or_answered(visitor: Visitor, address: str) -> None:
    visitor.open()
    visitor.js("const it = new Image(); it.src = 'http://127.0.0.1:9/x.png'; document.body.append(it);")
    awaited(lambda: any("Content Security Policy" in each["message"] for each in visitor.driver.get_log("browser")))
    strange = urllib.request.Request(address, headers={"Host": "example.org"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(strange, timeout=10)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/archive/guessed", timeout=10)
    with urllib.request.urlopen(f"{address}/config", timeout=10) as answer:
        config = answer.read().decode()
    assert str(Path.home()) not in config and str(Path(__file__).resolve().parents[2]) not in config

"""The HTML report in a real browser: it opens from a file, loads nothing, and says what the result files say."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slime_bench.metrics import CONVENTION_RULES
from slime_bench.report.ablation import AblationReport, Setting, ablation_report
from slime_bench.report.ablation_table import ablation_grid
from slime_bench.report.collect import collect
from slime_bench.report.command import Asked, run
from slime_bench.report.html import ablation_page
from slime_bench.report.planned import ablation_problems
from slime_bench.report.published import load_published
from slime_bench.report.rows import aggregate
from slime_bench.report.table import stat_text
from slime_bench.results.result import TrialResult
from tests.fixtures.toy_results import CAR, config_of, fail, make

BAD = '<script>document.title = "broken"</script>'
HOSTILE = ["background", BAD, '"><img src=x onerror=alert(1)>', "</script><b>bold", "a & b"]
WIDTHS, SCHEMES = (1280, 390), ("light", "dark")


@dataclass(frozen=True)
class Written:
    """Made-up trials and the page on them."""

    page: Path
    results: list[TrialResult]


def report(root: Path, subject: str, **options: Any) -> Written:
    console = Console(file=io.StringIO(), width=200)
    run(Asked(console, lambda *_: [], root, resamples=100), subject, **options)
    return Written(root / "reports" / subject / "report.html", collect(root).results)


@pytest.fixture(scope="module")
def car(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """SLiMe with 1 and 10 shots, one of them failed, beside older trials of a VLM; others are missing."""
    root = tmp_path_factory.mktemp("car")
    for seed in range(3):
        make(root, seed)
    for seed in range(2):
        make(root, seed, 10)
    fail(root, 2, 10, "The disk is full.\nA second line.")
    for seed in range(3):
        keeps = {"environment"} if seed == 1 else {"counts"}
        make(
            root,
            seed,
            0,
            keeps=frozenset(keeps),
            method="infoscore",
            backbone="mini_blip",
            protocol="infoscore_mini",
            lr=1e-4,
        )
    return report(root, "car")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Names from data that would be markup if they were not escaped."""
    root = tmp_path_factory.mktemp("hostile")
    for seed in range(2):
        make(root, seed, classes=HOSTILE, image=BAD, data="toy", subject="toy", backbone=BAD, preset="own")
    make(root, 0, 10, classes=HOSTILE, data="toy", subject="toy", backbone="another", preset="own")
    fail(root, 3, 1, BAD, data="toy")
    return report(root, "toy", seeds=(0, 1), shots=(1,))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """One Chromium for the whole module; skips without it, but fails in CI."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        reason = "chromium and chromedriver are not there (Debian: apt install chromium chromium-driver)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    # A container has neither a user other than root nor a large /dev/shm.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-extensions"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield found
    found.quit()


class Browser:
    """What the tests ask of the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, scheme: str = "light") -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(page.as_uri())

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def each(self, query: str, expression: str) -> list[Any]:
        """The value of a JavaScript expression for each element, which it calls `it`."""
        found = self.js(f"return [...document.querySelectorAll(arguments[0])].map((it) => {expression})", query)
        assert isinstance(found, list)
        return found

    def choose(self, identifier: str, value: str) -> None:
        """Give a control a value as a person does, with the event that follows."""
        self.js(
            "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
            "it.dispatchEvent(new Event(it.type === 'range' ? 'input' : 'change', {bubbles: true}));",
            identifier, value,
        )  # fmt: skip

    def tick(self, query: str, wanted: bool) -> None:
        box = self.driver.find_element("css selector", query)
        if box.is_selected() != wanted:
            box.click()

    def texts(self, query: str) -> list[str]:
        """What is visible of the elements."""
        return list(
            self.js(
                "return [...document.querySelectorAll(arguments[0])].filter((one) => one.checkVisibility())"
                ".map((one) => one.textContent.trim())",
                query,
            )
        )

    def requests(self) -> list[str]:
        """Addresses that the page has asked for since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [each["request"]["url"] for each in asked]


@pytest.fixture
def browser(driver: Any) -> Browser:
    driver.get_log("browser")
    driver.get_log("performance")
    return Browser(driver)


# ------------------------------------------------------------------------------------------------------------ one file


def test_opens_from_a_file_without_an_error_or_a_request(browser: Browser, car: Written, hostile: Written) -> None:
    for page in (car.page, hostile.page):
        browser.open(page)
        browser.choose("class-slider", "2")
        assert browser.driver.get_log("browser") == []
        asked = [url for url in browser.requests() if not url.startswith("data:image/")]
        assert asked == [page.as_uri()]
    text = car.page.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)|url\((?!#)|@import", text)
    head = html.unescape(text.partition("<title>")[0])
    assert "default-src 'none'; img-src data:; style-src 'sha256-" in head and "unsafe" not in head
    assert len(text) < 1_000_000


def test_its_policy_forbids_to_load(browser: Browser, car: Written) -> None:
    """Else the absence of requests would show only that nothing was tried."""
    browser.open(car.page)
    browser.js("const it = new Image(); it.src = 'http://127.0.0.1:9/x.png'; document.body.append(it);")
    browser.js(
        "const it = document.createElement('script'); it.textContent = 'window.ran = 1'; document.body.append(it);"
    )
    assert browser.js("return window.ran") is None
    said = " ".join(entry["message"] for entry in browser.driver.get_log("browser"))
    assert said.count("Content Security Policy") == 2


def test_names_from_data_stay_text(browser: Browser, hostile: Written) -> None:
    browser.open(hostile.page)
    assert browser.js("return document.title") != "broken"
    assert browser.js("return document.querySelectorAll('img[src=x], main b, main script').length") == 0
    heads = browser.texts("#results table.follows thead th")
    assert [name for name in HOSTILE if name in heads] == HOSTILE
    assert BAD in browser.texts("#results table.follows td.words")  # the backbone
    assert any(BAD in text for text in browser.texts("#problems td"))
    assert any(text.startswith(BAD) for text in browser.texts("#gallery h3"))
    browser.tick("#class0", False)
    assert browser.texts("#results table.follows thead th") == [name for name in heads if name != HOSTILE[1]]
    assert browser.driver.get_log("browser") == []


# ------------------------------------------------------------------------------------------------------- what it shows


def test_missing_and_failed_trials_come_first(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    assert browser.js("return document.querySelector('main').firstElementChild.id") == "problems"
    rows = browser.each("#problems tbody tr", "[...it.cells].map((cell) => cell.textContent)")
    assert rows[0][:3] == ["failed", "slime on mini_car, 10-shot, seed 2", "DataError: The disk is full."]
    assert rows[0][3].startswith("runs/mini_car/slime/10-shot/seed2-")
    assert [row[:2] for row in rows[1:]] == [
        ["missing", f"infoscore on mini_car, {shots}-shot, seed {seed}"] for shots in (1, 10) for seed in range(3)
    ]
    assert "make reproduce-car" in browser.texts("#problems code")


def test_tables_hold_ours_and_the_published_numbers(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    (markdown,) = (car.page.parent / "table.md",)
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("| ")]
    wanted = [
        [re.sub(r"\\(.)|\*\*", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    ]
    shown = browser.each("table.numbers:not(.trials) tr", "[...it.cells].map((cell) => cell.textContent.trim())")
    assert shown == wanted


@pytest.mark.parametrize(("convention", "background"), product(CONVENTION_RULES, (True, False)))
def test_the_switches_show_what_results_say(browser: Browser, car: Written, convention: str, background: bool) -> None:
    browser.open(car.page)
    browser.choose("convention", convention)
    browser.tick("#background", background)
    numbers = "[it.parentElement.dataset.series, it.dataset.column, it.dataset.value ?? null, it.textContent]"
    cells = browser.each("table.follows tr[data-series] td[data-texts]", numbers)
    shown = {(series, column): (value, text) for series, column, value, text in cells}
    rows = aggregate(car.results, convention, background)
    assert len(shown) == sum(len(row.classes) + 1 for row in rows)
    for row in rows:
        for column, stat in {**row.per_class, "avg": row.average}.items():
            value, text = shown[row.series, column]
            assert text == stat_text(stat), (row.method, row.shots, column)
            assert float(value) == pytest.approx(stat.mean, abs=1e-9)
    value = "Number(it.querySelector('[data-texts]').dataset.value)"
    trials = browser.each("tr[data-trial]", f"[it.dataset.trial, Number(it.dataset.seed), {value}]")
    wanted = {(one.series, one.seed): 100 * (one.under(convention, background).average or 0) for one in car.results}
    assert {(series, seed): value for series, seed, value in trials} == pytest.approx(wanted, abs=1e-9)
    # The paper's numbers follow its own rule, and stand beside no other.
    assert bool(browser.texts("table.follows tr.published th")) == (convention == "slime" and background)
    assert f"convention {convention}: {CONVENTION_RULES[convention]}" in browser.texts("li.metric")[0]
    bars = browser.js("return document.querySelectorAll('#bars0 .bars rect.bar:not(.paper)').length")
    assert bars == sum(stat.mean is not None for row in rows for stat in [*row.per_class.values(), row.average])
    said = browser.js("return document.querySelector('#bars0 desc').textContent")
    assert all(f"average {stat_text(row.average)}" in said for row in rows)
    assert browser.driver.get_log("browser") == []


def test_columns_sort_by_mouse_and_keyboard(browser: Browser, car: Written) -> None:
    browser.open(car.page)

    def column() -> list[float]:
        found = browser.each("table.follows tbody tr", "it.querySelector('[data-column=avg]').dataset.value ?? null")
        return [float(each) for each in found if each is not None]

    before = column()
    head = browser.driver.find_element("css selector", "table.follows th[data-column=avg]")
    button = head.find_element("css selector", "button")
    button.click()
    assert column() == sorted(before, reverse=True) != before and head.get_attribute("aria-sort") == "descending"
    button.send_keys("\ue007")  # Enter
    assert column() == sorted(before) and head.get_attribute("aria-sort") == "ascending"
    button.send_keys(" ")
    assert column() == before and head.get_attribute("aria-sort") is None
    first = browser.driver.find_element("css selector", "table.follows thead th button")
    first.click()
    names = browser.texts("table.follows tbody th")
    assert sorted(names, key=str.casefold, reverse=True) == names


def test_the_filter_hides_a_class_everywhere(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    query = "th[data-column=wheel], td[data-column=wheel]"
    assert browser.texts(query) and "wheel" in browser.texts("#bars0 text.strong")
    average = browser.texts("table.follows td[data-column=avg]")
    browser.tick("#classes input[value=wheel]", False)
    assert browser.texts(query) == [] and "wheel" not in browser.texts("#bars0 text.strong")
    assert browser.texts("th[data-column=body]") and browser.texts("table.follows td[data-column=avg]") == average
    browser.tick("#classes input[value=wheel]", True)
    assert browser.texts(query)


def test_one_slider_steps_through_the_maps(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    maps = (".views figure:last-child img", "it.src")
    seen = []
    for index, name in enumerate(CAR):
        browser.choose("class-slider", str(index))
        assert browser.texts(".views figure:last-child figcaption")[0].startswith(f"map: {name}")
        assert browser.js("return document.getElementById('class-name').selectedOptions[0].textContent") == name
        seen += browser.each(*maps)
    assert len(set(seen)) == len(seen) == 2 * len(CAR)
    browser.choose("class-name", "1")
    assert browser.js("return document.getElementById('class-slider').value") == "1"
    before = browser.each(*maps)
    options = browser.js("return [...document.getElementById('trial').options].map((one) => one.textContent)")
    assert options == [f"slime {shots}-shot, seed {seed}" for shots, seed in ((1, 0), (1, 1), (1, 2), (10, 0), (10, 1))]
    browser.choose("trial", "4")
    after = browser.each(*maps)
    assert not set(before) & set(after) and browser.texts(".views figcaption")[3].startswith("map: body")
    decoded = browser.js(
        "return Promise.all([...document.images].map((one) => one.decode().then(() => one.naturalWidth)))"
    )
    assert set(decoded) == {32}


def test_curves_confusion_and_what_older_trials_lack(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    assert browser.texts("#curves summary") == ["slime 1-shot", "slime 10-shot"]
    assert browser.texts("#curves figcaption") == ["loss", "loss_ce"] * 2
    lines = browser.each("#curves figure", "it.querySelectorAll('polyline').length")
    assert lines == [4, 4, 3, 3]  # a line for each seed, and their mean
    assert browser.texts("#confusion summary") == ["slime 1-shot", "slime 10-shot"]
    for row in browser.each(".matrix tbody tr", "[...it.cells].slice(1, -1).map((cell) => Number(cell.textContent))"):
        assert sum(row) == pytest.approx(100, abs=0.5)
    assert any("3 of 8 trials kept no confusion matrix" in text for text in browser.texts("#confusion p"))
    assert {"a CPU", "012345678 + uncommitted changes", "700 MiB", "abababababab"} <= set(
        browser.texts("#provenance dd")
    )
    assert any("2 of 8 trials have no readable environment.json" in text for text in browser.texts("#provenance dd"))


def test_an_ablation_follows_the_switches(browser: Browser, tmp_path: Path) -> None:
    published = load_published("car")
    table = published.ablation("lr") if published else None
    assert published is not None and table is not None
    settings = []
    for lr in (1.0, 0.1, 0.01):
        values = {**table.default, "method.name": "slime", "shots": 10, "method.lr": lr}
        trials = {seed: config_of(seed, 10, lr) | {"decided": config_of(seed, 10, lr)} for seed in range(3)}
        settings.append(Setting(f"lr={lr:g}", {"lr": lr}, values, lr == 0.1, True, trials))
        for seed in range(3 if lr == 0.1 else 2):
            make(tmp_path, seed, 10, lr=lr, keeps=frozenset({"counts"}))
    collected = collect(tmp_path)

    def made(convention: str, background: bool) -> AblationReport:
        return ablation_report(
            "lr", ["experiment=mini_car"], settings, collected, published, convention=convention,
            background=background, outputs=tmp_path,
        )  # fmt: skip

    report = made("slime", True)
    (tmp_path / "page.html").write_text(
        ablation_page(report, collected, tmp_path, ablation_problems(report, tmp_path, [])), encoding="utf-8"
    )
    browser.open(tmp_path / "page.html")
    assert browser.texts("#problems h2") == ["Not done: 2 of 9 trials"]
    cells = ("table.follows tbody tr:not([hidden])", "[...it.cells].map((cell) => cell.textContent.trim())")
    assert browser.each(*cells) == [line.cells for line in ablation_grid(report).lines]
    assert (
        len(browser.each("#points0 svg:not(.key) .dot", "1")) == 3
        and len(browser.each("#points0 svg:not(.key) .diamond", "1")) == 3
    )
    browser.choose("points0-what", "wheel")
    assert (
        len(browser.each("#points0 svg:not(.key) .dot", "1")) == 3
        and len(browser.each("#points0 svg:not(.key) .diamond", "1")) == 3
    )
    browser.choose("convention", "dataset")
    browser.tick("#background", False)
    wanted = [line.cells for line in ablation_grid(made("dataset", False)).lines if line.ours]
    assert browser.each(*cells) == wanted and any("±" in line[-2] for line in wanted)
    assert browser.each("#points0 svg:not(.key) .diamond", "1") == [] and browser.driver.get_log("browser") == []


# ------------------------------------------------------------------------------------------------------- for everybody


CONTRAST = r"""
const parse = (text) => {
  const found = text.match(/[\d.]+(?:e-?\d+)?/g).map(Number);
  const [red, green, blue] = text.startsWith("color(") ? found.slice(0, 3).map((each) => 255 * each) : found;
  return { red, green, blue, alpha: found.length > 3 ? found[3] : 1 };
};
const light = ({ red, green, blue }) => {
  const part = (value) => { value /= 255; return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
  return 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
};
const found = [];
for (const one of document.querySelectorAll("body *")) {
  const own = [...one.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
  if (!own || ["SCRIPT", "STYLE", "NOSCRIPT", "title", "desc", "OPTION"].includes(one.tagName)) continue;
  if (!one.checkVisibility()) continue;
  const style = getComputedStyle(one);
  let back = null;
  for (let each = one; each && !back; each = each.parentElement) {
    const colour = parse(getComputedStyle(each).backgroundColor);
    if (colour.alpha === 1) back = colour; else if (colour.alpha > 0) throw Error("a half transparent background");
  }
  const front = parse(one instanceof SVGElement ? style.fill : style.color);
  const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
  found.push([(high + 0.05) / (low + 0.05), one.tagName, one.textContent.trim().slice(0, 40)]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_stands_out(browser: Browser, car: Written, scheme: str) -> None:
    browser.open(car.page, scheme=scheme)
    found = browser.js(CONTRAST)
    assert len(found) > 200 and found[0][0] >= 4.5, found[:3]
    back = browser.js("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_does_not_scroll_sideways(browser: Browser, car: Written, hostile: Written, width: int) -> None:
    for page in (car.page, hostile.page):
        browser.open(page, width)
        browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert browser.js("const it = document.documentElement; return it.scrollWidth - it.clientWidth") == 0
        # What is wider scrolls in its own container, which the keyboard reaches.
        wide = "it.checkVisibility() && !it.closest('.scroll') && it.getBoundingClientRect().right"
        found = browser.each("main *", f"[{wide}, it.outerHTML.slice(0, 80)]")
        edge = browser.js("return document.documentElement.clientWidth")
        assert [text for right, text in found if right and right > edge + 1] == []
    assert browser.js("return [...document.querySelectorAll('.scroll')].every((one) => one.tabIndex === 0)")


def test_names_for_those_who_do_not_see_it(browser: Browser, car: Written) -> None:
    browser.open(car.page)
    assert browser.js("return [...document.images].length") == 8
    assert browser.js("return [...document.images].every((one) => one.alt.trim().length > 8)")
    described = "it.getAttribute('aria-labelledby').split(' ').map((id) => document.getElementById(id)?.textContent)"
    charts = browser.each("main svg:not([aria-hidden=true])", f"[it.getAttribute('role'), ...{described}]")
    assert len(charts) >= 5 and all(kind == "img" and title and text for kind, title, text in charts)
    assert all(browser.each("input, select", "it.labels.length"))
    ids = browser.each("[id]", "it.id")
    assert len(ids) == len(set(ids))


def test_prints_with_everything_open(browser: Browser, car: Written) -> None:
    import pypdf

    browser.open(car.page, scheme="dark")
    made = browser.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    pages = [page.extract_text() for page in pypdf.PdfReader(io.BytesIO(base64.b64decode(made["data"]))).pages]
    text = re.sub(r"\s+", " ", " ".join(pages))
    assert 1 <= len(pages) <= 30 and all(page.strip() for page in pages)
    row = next(row for row in aggregate(car.results) if (row.method, row.shots) == ("slime", 1))
    assert stat_text(row.average) in text and "The disk is full." in text and "map: body" in text
    assert car.results[0].signature in text  # it stands in a closed <details> on the screen
    assert "Classes shown" not in text and "Step through" not in text
    assert browser.texts("#provenance dl dl") == []
    assert browser.js("return document.querySelectorAll('#provenance details[open]').length") == 0

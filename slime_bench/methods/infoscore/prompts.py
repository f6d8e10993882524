"""The words that a vision-language model is asked with: read from YAML, expanded to a list with a span for each class.

template: Image of {}.             one {} for the word
background: [sky, wall, ...]       class 0; its first word stands for its name
names: {neck+torso: torso}         how a class is written out, where its name is no word
related: {wheel: [tyre, rim], ...} every class of the data, also those without related words
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir

_KEYS: Final = ("template", "background", "names", "related")
_QUOTE: Final = "quote words such as `on` or `no`, which YAML reads as booleans"
_REMEDY: Final = "correct the file, or choose another one"


@dataclass(frozen=True)
class PromptList:
    """Prompts class by class.

    Attributes:
        texts: the prompts, class 0's first. spans: [start, end) of class k in `texts`.
    """

    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PromptFile:
    """The words of one file.

    Attributes:
        path: the file. template: with one {}. background: words of class 0. names: class -> the word it is written as,
            where that is not its own name. related: class -> further words.
    """

    path: Path
    template: str
    background: tuple[str, ...]
    names: Mapping[str, str]
    related: Mapping[str, tuple[str, ...]]

    def content_hash(self) -> str:
        """sha256 in hex of all that decides a list: neither the file's place nor the order of its classes does."""
        content = {name: getattr(self, name) for name in _KEYS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def words(self, classes: Sequence[str]) -> list[tuple[str, ...]]:
        """All words of each class, its own first.

        Args:
            classes: in label order; class 0 is the background, whatever it is called.

        Raises:
            ConfigError: a class without an entry, or two classes with one word.
        """
        for name in classes[1:]:
            if name not in self.related:
                raise ConfigError(
                    f"no prompt words for the class `{name}`", path=f"{self.path}: related",
                    found=f"entries for {', '.join(self.related) or 'no class'}",
                    expected=f"an entry for each of {', '.join(classes[1:])}",
                    remedy=f"add `{name}: []`, or choose the prompts of this data set"
                    + _nearest(name, self.related, " (the nearest entry is `{}`)"),
                )  # fmt: skip
        words = [self.background, *((self.names.get(name, name), *self.related[name]) for name in classes[1:])]
        owners: dict[str, str] = {}
        for name, own in zip(classes, words, strict=True):
            for word in own:
                owner = owners.setdefault(word.casefold(), name)
                if owner != name:
                    raise ConfigError(
                        f"two classes share the word `{word}`", path=f"{self.path}: related",
                        found=f"`{word}` for {owner} and for {name}",
                        expected="every word for one class only, whatever its case",
                        remedy="leave it out of one of the two",
                    )  # fmt: skip
        return words

    def expand(self, classes: Sequence[str], multi: bool) -> PromptList:
        """The prompts of a class list.

        Class 0 always gives all its words; the others their name and, with `multi`, their related words too.

        Raises:
            ConfigError: as `words`, also for related words that are not used.
        """
        texts: list[str] = []
        spans: list[tuple[int, int]] = []
        for index, own in enumerate(self.words(classes)):
            start = len(texts)
            texts += [self.template.replace("{}", word) for word in (own if multi or index == 0 else own[:1])]
            spans.append((start, len(texts)))
        return PromptList(tuple(texts), tuple(spans))


def bundled_prompts() -> list[str]:
    """Names of the files in conf/prompts."""
    return sorted(path.stem for path in (config_dir() / "prompts").glob("*.yaml"))


def read_prompts(name_or_path: str) -> PromptFile:
    """The words of a bundled file, by its name, or of any YAML file, by its path (with a folder or a suffix).

    Raises:
        ConfigError: no such file, unreadable, unknown or missing keys, an empty or repeated word, something else than
            text, or a template without exactly one {}.
    """
    path = _locate(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(
            "cannot read the prompt file", path=path, found=found, expected="YAML text", remedy=_REMEDY
        ) from error
    if not isinstance(content, Mapping):
        raise ConfigError(
            "the prompt file is no mapping", path=path, found=type(content).__name__,
            expected=f"the keys {', '.join(_KEYS)}", remedy=_REMEDY,
        )  # fmt: skip
    unknown = [str(key) for key in content if key not in _KEYS]
    if unknown:
        raise ConfigError(
            f"the prompt file has an unknown key `{unknown[0]}`", path=path, found=", ".join(unknown),
            expected=", ".join(_KEYS), remedy=_nearest(unknown[0], _KEYS, "did you mean `{}`?") or _REMEDY,
        )  # fmt: skip
    template = _text(content.get("template"), path, "template")
    if template.count("{}") != 1 or set("{}") & set(template.replace("{}", "")):
        raise _bad(path, "template", repr(template), "a sentence with exactly one {}, e.g. `Image of {}.`")
    background = _words(content.get("background"), path, "background")
    if not background:
        raise _bad(path, "background", "no word", "at least one noun, e.g. [sky, wall]")
    related = _mapping(content.get("related"), path, "related")
    related = {name: _words(each, path, f"related.{name}") for name, each in related.items()}
    names = _mapping(content.get("names", {}), path, "names")
    names = {name: _text(each, path, f"names.{name}") for name, each in names.items()}
    for name in names:
        if name not in related:
            raise _bad(path, f"names.{name}", "a class without related words", "classes that `related` has too")
    for name, words in related.items():
        if (own := names.get(name, name)) in words:
            raise _bad(path, f"related.{name}", f"`{own}` twice", "words other than the class's own")
    return PromptFile(path, template, background, names, related)


def _locate(name: str) -> Path:
    options = bundled_prompts()
    listed = f"one of {', '.join(options)}, or the path of a YAML file"
    if not name.strip():
        raise ConfigError(
            "no prompts are named", path="method.prompts", found="an empty text", expected=listed, remedy="name one"
        )
    path = Path(os.path.expanduser(name))  # Path.expanduser raises for an unknown user
    if len(path.parts) != 1 or path.suffix in (".yaml", ".yml"):
        return path.absolute()
    if name in options:
        return config_dir() / "prompts" / f"{name}.yaml"
    raise ConfigError(
        f"there are no prompts called `{name}`", path="method.prompts", found=repr(name), expected=listed,
        remedy=f"{_nearest(name, options, 'did you mean `{}`? Or') or 'choose one, or'} write the words of your "
        "classes: method.prompts=<file.yaml> with template: Image of {}., background: [sky, wall], "
        "related: {<class>: [], ...}",
    )  # fmt: skip


def _nearest(name: str, options: Iterable[str], sentence: str) -> str:
    """`sentence` about the option whose spelling is nearest; empty where none is near."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return sentence.format(close[0]) if close else ""


def _mapping(value: Any, path: Path, key: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) and name.strip() for name in value):
        raise _bad(path, key, _shown(value), f"a mapping of class names ({_QUOTE})")
    return value


def _words(value: Any, path: Path, key: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _bad(path, key, _shown(value), "a list of words, e.g. [tyre, rim], or [] for none")
    words = tuple(_text(each, path, key) for each in value)
    for word in words:
        # Words that differ in case are let through: the authors' list for VOC has tv and TV, and counts both.
        if words.count(word) > 1:
            raise _bad(path, key, f"`{word}` twice", "every word once")
    return words


def _text(value: Any, path: Path, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _bad(path, key, _shown(value), f"a non-empty word ({_QUOTE})")
    return " ".join(value.split())


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _bad(path: Path, key: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"bad prompt words: `{key}`", path=f"{path}: {key}", found=found, expected=expected, remedy=_REMEDY
    )

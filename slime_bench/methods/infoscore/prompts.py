"""The words that a vision-language model is asked with: read from YAML, expanded to a list with a span for each class.

template: Image of {}.             one {} for the word
background: [sky, wall, ...]       class 0; its first word stands for its name
names: {neck+torso: torso}         how a class is written out, where its name is no word
related: {wheel: [tyre, rim], ...} every class of the data, also those without related words
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from slime_bench.config.read import nearest, read
from slime_bench.errors import ConfigError
from slime_bench.paths import config_dir, user_path

_KEYS: Final = ("template", "background", "names", "related")


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
        template: with one {}. background: words of class 0. related: class -> further words. names: class -> the word
            it is written as, where that is not its own name. path: the file.

    Raises:
        ConfigError: an empty or repeated word, or a template without exactly one {}.
    """

    template: str
    background: list[str]
    related: dict[str, list[str]]
    names: dict[str, str] = field(default_factory=dict)
    path: Path = field(default=Path(), init=False)

    def __post_init__(self) -> None:
        if self.template.count("{}") != 1 or set("{}") & set(self.template.replace("{}", "")):
            raise _bad("template", repr(self.template), "a sentence with exactly one {}, e.g. `Image of {}.`")
        if not self.background:
            raise _bad("background", "no word", "at least one noun, e.g. [sky, wall]")
        for name in self.names:
            if name not in self.related:
                raise _bad(f"names.{name}", "a class without related words", "classes that `related` has too")
        for key, words in {
            "background": self.background,
            **{f"related.{name}": self._own(name) for name in self.related},
        }.items():
            for word in words:
                # Words that differ in case are let through: the authors' list for VOC has tv and TV, and counts both.
                if not word.strip() or words.count(word) > 1:
                    raise _bad(
                        key, f"`{word}` twice" if word.strip() else "an empty word", "non-empty words, every one once"
                    )

    def _own(self, name: str) -> list[str]:
        """How a class is written out, and its further words."""
        return [self.names.get(name, name), *self.related[name]]

    def content_hash(self) -> str:
        """sha256 in hex of all that decides a list: neither the file's place nor the order of its classes does."""
        content = {name: getattr(self, name) for name in _KEYS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def words(self, classes: Sequence[str]) -> list[list[str]]:
        """All words of each class, its own first.

        Args:
            classes: in label order; class 0 is the background, whatever it is called.

        Raises:
            ConfigError: a class without an entry, or two classes with one word.
        """
        for name in classes[1:]:
            if name not in self.related:
                close = nearest(name, self.related, count=1)
                raise ConfigError(
                    f"no prompt words for the class `{name}`", path=f"{self.path}: related",
                    found=f"entries for {', '.join(self.related) or 'no class'}",
                    expected=f"an entry for each of {', '.join(classes[1:])}",
                    remedy=f"add `{name}: []`, or choose the prompts of this data set"
                    + (f" (the nearest entry is `{close[0]}`)" if close else ""),
                )  # fmt: skip
        words = [self.background, *map(self._own, classes[1:])]
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
        ConfigError: no such file, unreadable, unknown, missing or ill-typed keys, or words that `PromptFile` refuses.
    """
    path = _locate(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        if not isinstance(content, Mapping):
            raise ValueError(f"no mapping with the keys {', '.join(_KEYS)}")
    except (OSError, ValueError, yaml.YAMLError) as error:
        found = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError(
            "cannot read the prompt file", path=path, found=found, expected="YAML text, a mapping",
            remedy="correct the file, or choose another one",
        ) from error  # fmt: skip
    try:
        file = read(PromptFile, content)
    except ConfigError as error:
        raise ConfigError(
            f"bad prompt words: {error.summary}", path=f"{path}: {error.path}", found=error.found,
            expected=error.expected, remedy=error.remedy,
        ) from error  # fmt: skip
    object.__setattr__(file, "path", path)
    return file


def _locate(name: str) -> Path:
    path = user_path(name)
    if len(path.parts) > 1 or path.suffix in (".yaml", ".yml"):
        return path.absolute()
    options = bundled_prompts()
    if name in options:
        return config_dir() / "prompts" / f"{name}.yaml"
    close = nearest(name, options, count=1)
    raise ConfigError(
        f"there are no prompts called `{name}`", path="method.prompts", found=repr(name),
        expected=f"one of {', '.join(options)}, or the path of a YAML file",
        remedy=(f"did you mean `{close[0]}`? Or " if close else "choose one, or ") + "write the words of your classes: "
        "method.prompts=<file.yaml> with template: Image of {}., background: [sky, wall], related: {<class>: [], ...}",
    )  # fmt: skip


def _bad(key: str, found: str, expected: str) -> ConfigError:
    return ConfigError(
        f"`{key}`", path=key, found=found, expected=expected, remedy="correct the file, or choose another one"
    )

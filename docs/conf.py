"""Sphinx's configuration of these pages: `make docs` writes build/docs, and every warning is an error."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml

project = "slime-bench"
project_copyright = "the authors of slime-bench, Apache-2.0"

extensions = ["myst_parser"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # headings can be linked to: page.md#heading

html_theme = "furo"
html_title = "slime-bench"
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
exclude_patterns = ["_build"]


def setup(app: Any) -> None:
    """Equations as MathML, which browsers draw themselves, so that pages need no network."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    equation = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="math" style="overflow-x: auto">{equation}</div>\n')
    raise nodes.SkipNode

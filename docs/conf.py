"""The documentation as a site, by Sphinx: `make docs`.

The source folder is the root of the clone, so that a link works in the site as it does in the repository. The pages
need nothing from the network: no fonts, scripts or styles of other hosts.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "client")]

from service import __version__ as release  # noqa: E402 (found by the line above)

project = "digitserve"
author = "The digitserve authors"
version = release
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/*.rst",
    "docs/upstream/*.md",
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md"),
    *("client/README.md", "examples/README.md", "export/weights/README.md", "samples/README.md"),
]
exclude_patterns = ["build", ".*", "**/node_modules", "**/target"]  # folders that are large and hold no page
nitpicky = False  # a type of a signature that has no page stays plain text

myst_enable_extensions = ["html_image"]
myst_heading_anchors = 4  # GitHub's anchors, so that #links to headings are checked
myst_links_external_new_tab = False
smartquotes = False  # `--flag` in a docstring keeps both hyphens
default_role = "code"  # in docstrings, `name` is code

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"digitserve {release}"
html_extra_path = ["site/index.html"]
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_copy_source = False
html_domain_indices = False
html_show_copyright = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_prompt_text = "$ "


def add_navigation(app: Sphinx, name: str, source: list[str]) -> None:
    """Append the tree of pages to the index: the links of each section, with their titles and in their order."""
    if name != app.config.root_doc:
        return
    trees = []
    for section in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        caption = section.partition("\n")[0]
        pages = [f"{title} <{path}>" for title, path in re.findall(r"\[([^]]+)\]\(([\w./-]+)\.(?:md|rst)\)", section)]
        if pages:
            trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```"]))
    source[0] += "\n\n" + "\n\n".join(trees)


def leave_out_module_docstring(
    _app: Sphinx, kind: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Leave out the docstring of a module, which is written for readers of its file."""
    if kind == "module":
        lines.clear()


def setup(app: Sphinx) -> None:
    """Register what this file adds."""
    app.connect("source-read", add_navigation)
    app.connect("autodoc-process-docstring", leave_out_module_docstring)

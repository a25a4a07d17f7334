"""Settings of the documentation site; `make docs` builds it."""

import rnn_ext

project = "rnn_ext"
author = copyright = "rnn_ext developers"
release = version = rnn_ext.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["figures.py"]
myst_enable_extensions = ["deflist"]  # for the glossary
myst_heading_anchors = 3
autodoc_typehints = "none"  # the docstrings say more: shapes
autodoc_member_order = "bysource"
# As a list like that of parameters: an entry may name several attributes.
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"rnn_ext {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

"""How the documentation is built: scripts/docs."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

import medduet  # noqa: E402

project = "MedDuet"
author = "the MedDuet contributors"
project_copyright = "the MedDuet contributors, MIT licence"
release = version = medduet.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "pages",
]
exclude_patterns = ["figures", "reports", "_ext"]

# The same files are read on GitHub: headings have GitHub's anchors, quotes stay as they are typed.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
smartquotes = False

default_role = "name"
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("ArrayLike", "FloatArray", "IntArray", "Interval")}
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
napoleon_use_rtype = False
napoleon_custom_sections = ["Shapes"]

html_theme = "furo"
html_title = f"MedDuet {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

"""Settings of Sphinx: `sphinx-build -W -b html docs build/docs`."""

from jaxdpo import __version__

project = "jaxdpo"
release = version = __version__
copyright = "the jaxdpo authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "notebooks/*.py"]

html_theme = "sphinx_book_theme"
html_title = "jaxdpo"

# Links to headings within a page and from page to page.
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath", "colon_fence"]

# Notebooks are shown with the results that they were saved with; the tests run them.
nb_execution_mode = "off"

autodoc_typehints = "description"
autodoc_member_order = "bysource"

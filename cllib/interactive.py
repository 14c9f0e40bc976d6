"""Sliders and menus, where somebody is there to move them."""

import os
from collections.abc import Callable
from typing import Any

HEADLESS = "CLLIB_HEADLESS"  # set while a chapter is executed without a reader


def watched() -> bool:
    """Whether somebody may be looking."""
    return HEADLESS not in os.environ


def explore(draw: Callable[..., Any], **choices: Any) -> None:
    """Call `draw` again whenever a reader in JupyterLab picks other values; nothing where a chapter runs headless.

    choices: by argument, a list to choose from, or (low, high, step).
    """
    if not watched():
        return
    from ipywidgets import interact  # slow to import, and only of use in a live notebook

    interact(draw, **choices)

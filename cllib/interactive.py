"""Sliders and menus, where somebody is there to move them."""

import inspect
from collections.abc import Callable
from typing import Any

from IPython.core.getipython import get_ipython


def watched() -> bool:
    """Whether a front end asked for the cell that runs: its requests name the cell, those of papermill do not."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and "cellId" in kernel.get_parent("shell").get("metadata", {})


def explore(draw: Callable[..., Any], **choices: Any) -> None:
    """Call `draw` again whenever a reader in JupyterLab picks other values; nothing where a chapter runs headless.

    choices: by argument of `draw`, a list to choose from, or (low, high, step) of a slider that begins at the
    default of the argument. A slider counts when it is let go: drawing may take a second.
    """
    if not watched():
        return
    import ipywidgets  # slow to import, and only of use in a live notebook

    defaults = inspect.signature(draw).parameters
    made = {}
    for name, choice in choices.items():
        if isinstance(choice, tuple):
            low, high, step = choice
            kind = ipywidgets.IntSlider if isinstance(low, int) else ipywidgets.FloatSlider
            value = defaults[name].default
            choice = kind(value, min=low, max=high, step=step, description=name, continuous_update=False)
        made[name] = choice
    ipywidgets.interact(draw, **made)

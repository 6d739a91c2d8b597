"""The headline comparison's settings, the parts in which they are run, and what is kept of them."""

from comparing.archive import finished_runs, keep_records, restore_records
from comparing.parts import RECIPES, SETTINGS, Part, differs_from_recipe, parts_of, settings_named

__all__ = [
    "RECIPES",
    "SETTINGS",
    "Part",
    "differs_from_recipe",
    "finished_runs",
    "keep_records",
    "parts_of",
    "restore_records",
    "settings_named",
]

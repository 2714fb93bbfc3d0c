"""A pruned student of several budgets: one recipe for each."""

from __future__ import annotations

from distill.recipe.file import with_values
from distill.recipe.schema import Recipe


def each_budget(recipe: Recipe) -> dict[str, Recipe]:
    """Return the recipe of each budget in the list of budgets, by the name of its student's folder (latency_ms-2).

    If there is no list, nothing is returned.
    """
    prune = recipe.student and recipe.student.prune
    if not prune or not prune.is_several:
        return {}
    key, budgets = prune.budgets
    return {f"{key}-{budget:g}": with_values(recipe, {f"student.prune.{key}": budget}) for budget in budgets}

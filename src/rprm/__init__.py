"""Reasoning-driven process reward models: judge solutions step by step, measure, train and search.

>>> from rprm import RPRM
>>> rewards = RPRM("r-prm-7b").score(solutions)  # doctest: +SKIP
"""

# Nothing is imported here: it would be before a command can heed a signal (`rprm.cli.main`).
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rprm.api import RPRM
    from rprm.engines import Engine, load_engine
    from rprm.errors import RprmError
    from rprm.prompts import PromptTemplate, load_template
    from rprm.records import Analysis, Solution, SolutionReward, StepReward
    from rprm.rewarders import load_rewarder
    from rprm.splitting import split_steps
    from rprm.tables import to_pandas

__version__ = "0.1.0"

#: Module -> names. Imported when first used, so that `import rprm` costs nothing.
_HOMES = {
    "api": ("RPRM",),
    "rewarders": ("load_rewarder",),
    "engines": ("Engine", "load_engine"),
    "errors": ("RprmError",),
    "prompts": ("PromptTemplate", "load_template"),
    "records": ("Analysis", "Solution", "SolutionReward", "StepReward"),
    "splitting": ("split_steps",),
    "tables": ("to_pandas",),
}
__all__ = [
    "RPRM", "Analysis", "Engine", "PromptTemplate", "RprmError", "Solution", "SolutionReward", "StepReward",
    "__version__", "load_engine", "load_rewarder", "load_template", "split_steps", "to_pandas",
]  # fmt: skip


def __getattr__(name: str) -> "Any":
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(f"rprm.{module}"), name)
            return value
    raise AttributeError(f"module 'rprm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

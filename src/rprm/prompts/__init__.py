"""Prompts: their layout, the templates that ship with the package, and the import of a released model's own."""

from rprm.prompts.library import (
    builtin_names,
    carried_policy_template,
    carried_template,
    load_policy_template,
    load_template,
    policy_names,
)
from rprm.prompts.policy import PolicyTemplate
from rprm.prompts.released import ImportedTemplate, import_template
from rprm.prompts.template import Message, Prompt, PromptTemplate

__all__ = [
    "ImportedTemplate",
    "Message",
    "PolicyTemplate",
    "Prompt",
    "PromptTemplate",
    "builtin_names",
    "carried_policy_template",
    "carried_template",
    "import_template",
    "load_policy_template",
    "load_template",
    "policy_names",
]

"""Prompts: their layout, the templates that ship with the package, and the import of a released model's own."""

from rprm.prompts.importer import ImportedTemplate, import_source, import_template
from rprm.prompts.library import builtin_names, carried_template, load_template
from rprm.prompts.template import Message, Prompt, PromptTemplate

__all__ = [
    "ImportedTemplate",
    "Message",
    "Prompt",
    "PromptTemplate",
    "builtin_names",
    "carried_template",
    "import_source",
    "import_template",
    "load_template",
]

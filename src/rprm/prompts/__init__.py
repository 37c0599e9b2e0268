"""Prompts: their layout, the templates that ship with the package, and the import of a released model's own."""

from rprm.prompts.library import builtin_names as builtin_names
from rprm.prompts.library import carried_critic_template as carried_critic_template
from rprm.prompts.library import carried_policy_template as carried_policy_template
from rprm.prompts.library import carried_template as carried_template
from rprm.prompts.library import load_critic_template as load_critic_template
from rprm.prompts.library import load_injection_template as load_injection_template
from rprm.prompts.library import load_policy_template as load_policy_template
from rprm.prompts.library import load_template as load_template
from rprm.prompts.library import policy_names as policy_names
from rprm.prompts.released import ImportedTemplate as ImportedTemplate
from rprm.prompts.released import import_template as import_template
from rprm.prompts.template import CriticTemplate as CriticTemplate
from rprm.prompts.template import InjectionTemplate as InjectionTemplate
from rprm.prompts.template import Message as Message
from rprm.prompts.template import PolicyTemplate as PolicyTemplate
from rprm.prompts.template import Prompt as Prompt
from rprm.prompts.template import PromptTemplate as PromptTemplate

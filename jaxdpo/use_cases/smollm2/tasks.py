"""The tasks by name."""

from jaxdpo.use_cases.smollm2 import dictionary, from_text, word_limit

_MODULES = (word_limit, dictionary, from_text)
TASKS = {module.TASK.name: module.TASK for module in _MODULES}

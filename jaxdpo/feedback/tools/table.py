"""The tools whose exports are read, by name."""

from typing import Literal

from jaxdpo.feedback.tools.argilla import Argilla
from jaxdpo.feedback.tools.chainlit import Chainlit
from jaxdpo.feedback.tools.gradio import Gradio
from jaxdpo.feedback.tools.label_studio import LabelStudio
from jaxdpo.feedback.tools.langfuse import Langfuse
from jaxdpo.feedback.tools.open_webui import OpenWebUI
from jaxdpo.feedback.tools.tool import Tool

ToolName = Literal["argilla", "label_studio", "open_webui", "chainlit", "gradio", "langfuse"]
TOOLS: dict[ToolName, type[Tool]] = {
    "argilla": Argilla,
    "label_studio": LabelStudio,
    "open_webui": OpenWebUI,
    "chainlit": Chainlit,
    "gradio": Gradio,
    "langfuse": Langfuse,
}

"""Tell a chat template that fails on every row from rows that it rightly rejects."""

from __future__ import annotations

from pathlib import Path

from jobs.errors import Fault, TemplateRejection

THOUGHT_END = "</think>"
ROW_REMEDY = "Remove the row, or use data.format: prompt-completion with this model."
TEMPLATE_REMEDY = "Fix the template, or use data.format: prompt-completion with this model."
BOTH_REMEDY = (
    "Fix the template, or the rows if it rejects them with reason, or use data.format: "
    "prompt-completion with this model."
)
REASONING_REMEDY = (
    "Move the reasoning to the message's key reasoning_content, if the template renders that, "
    "or use data.format: prompt-completion with this model."
)


class TemplateRejections:
    """The rejections of one pass over rows, as long as all have the same reason."""

    def __init__(self) -> None:
        self.count, self.reason, self.fails_always = 0, "", False
        self._is_uniform, self._first = True, ""

    def add(self, rejection: TemplateRejection) -> None:
        """Count a rejection."""
        if not self.count:
            self.reason, self.fails_always = rejection.reason, rejection.fails_always
            self._first = rejection.faults[0].key
        self._is_uniform &= rejection.reason == self.reason
        self.count += 1

    def summarize(self, template: Path) -> Fault | None:
        """Return one fault that names the template, in a pass that encoded no row. None if the
        reasons differ, or for a single row that may itself be at fault.
        """
        if self.fails_always:
            return Fault(str(template), self.reason, TEMPLATE_REMEDY)
        if self.count < 2 or not self._is_uniform:
            return None
        problem = f"{self.reason}, in each of {self.count:,} rows (the first is {self._first})"
        strips_reasoning = THOUGHT_END in self.reason
        return Fault(str(template), problem, REASONING_REMEDY if strips_reasoning else BOTH_REMEDY)


def find_template_file(folder: Path) -> Path:
    """Return the file of a model that holds its chat template."""
    template = folder / "chat_template.jinja"
    return template if template.is_file() else folder / "tokenizer_config.json"

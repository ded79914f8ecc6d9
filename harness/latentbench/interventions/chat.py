"""A question in the model's own chat template.

Training, studies and evaluation must put a question alike, or what a vector learns is partly the difference of two prompts.
Evaluations go through lm-eval (`apply_chat_template` of its model); `asked` gives the same text for everything else.
"""

from __future__ import annotations

from typing import Any

from latentbench.core.border import foreign
from latentbench.core.errors import InvalidInput


def asked(tokenizer: Any, question: str, system: str | None = None) -> str:
    """All that the model reads before it answers `question`: the generation prompt ends it.

    A template that takes no system instruction is used without one, as lm-eval does. Raises InvalidInput where the
    tokenizer has no chat template, or one that refuses the question.
    """
    from jinja2 import TemplateError  # reading a spec needs no templates

    if not getattr(tokenizer, "chat_template", None):
        raise InvalidInput(
            "`chat_template: true` needs a model whose tokenizer has a chat template, and this one has none; leave it out, "
            "or write the template into the problems' `prompt:`"
        )
    user = [{"role": "user", "content": question}]
    with foreign("the model's chat template refuses a question", kind=InvalidInput):
        try:
            return _written(tokenizer, [{"role": "system", "content": system}, *user] if system else user)
        except TemplateError:
            if not system:
                raise
        return _written(tokenizer, user)


def _written(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

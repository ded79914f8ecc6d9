"""What a model can read: the token ids that its embedding has a row for, and the positions that it knows.

A tokenizer can hold more than its model (padding, chat turns or words were added to it, and no rows for them). An id
beyond the embedding ends in an IndexError somewhere inside the model, on a GPU in a lost device. So what we put beside a
text ourselves (padding, the opening token, end tokens) is always an id the model knows, and a text that holds another is
refused where it becomes ids. More rows than tokens are usual and harmless. Learned positions end in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

from latentbench.core.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latentbench.core.protocols import LanguageModel


def embedding_rows(model: Any) -> int:
    """How many token ids a loaded model knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def unembedding(model: Any) -> Tensor:
    """[vocabulary, d]: the weights of the output embedding, detached. Raises InvalidInput where they cannot be read."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight: Tensor | None = getattr(head, "weight", None)
    if weight is None:
        raise InvalidInput(f"{type(model).__name__} has no unembedding to look through")
    if weight.is_meta:
        raise InvalidInput(
            "device_map keeps the output embedding (lm_head) from the device: give it one to look through it"
        )
    return weight.detach()


def known(token: int | None, rows: int | None) -> int | None:
    """`token` where an embedding of `rows` rows has one for it, else None; `rows` None knows every id."""
    return token if token is not None and token >= 0 and (rows is None or token < rows) else None


def padding_id(tokenizer: Any, rows: int | None) -> int:
    """What fills up shorter rows. Masked everywhere, so any id that the model knows will do; every model knows 0."""
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "eos", "bos"))
    return next((found for token in ids if (found := known(token, rows)) is not None), 0)


def padding_of(lm: LanguageModel) -> int:
    """`padding_id` of a loaded model."""
    return padding_id(lm.tokenizer, embedding_rows(lm.model))


def end_ids(lm: LanguageModel) -> set[int]:
    """Tokens that end an answer: all that the model's generation config lists, and the tokenizer's.

    Raises InvalidInput where the config lists what is no id.
    """
    configured = getattr(lm.model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list | tuple) else [configured]
    ends, rows = [end for end in (*listed, lm.tokenizer.eos_token_id) if end is not None], embedding_rows(lm.model)
    if strange := [end for end in ends if not isinstance(end, int)]:
        raise InvalidInput(f"the model's generation config has the eos_token_id {strange[0]!r}; ids are whole numbers")
    return {end for end in ends if known(end, rows) is not None}


def check_ids(ids: Sequence[int], tokenizer: Any, rows: int | None, where: str = "") -> None:
    """Raises InvalidInput that names the first of `ids` that an embedding of `rows` rows does not know.

    `where` says whose ids they are and stands first in the message.
    """
    if rows is None or max(ids, default=0) < rows:
        return
    strange = next(token for token in ids if token >= rows)
    raise InvalidInput(
        f"{where}the token {tokenizer.convert_ids_to_tokens(strange)!r} has the id {strange}, but the model's embedding "
        f"ends at {rows - 1}: the tokenizer has {len(tokenizer)} tokens and is not, or no longer, this model's; "
        "take the tokenizer it was trained with, or resize the model's embedding and train it"
    )


def takes_positions(model: nn.Module) -> bool:
    """Whether its passes can be told positions; models that know none, or find them in the mask, cannot."""
    return "position_ids" in signature(model.forward).parameters


def positions(model: nn.Module) -> int | None:
    """Tokens of the longest text by the model's configuration; None where that states none."""
    config: Any = model.config
    stated = getattr(config.get_text_config(), "max_position_embeddings", None)
    return stated if isinstance(stated, int) and stated > 0 else None


def last_position(model: nn.Module) -> int | None:
    """Tokens of the longest text that can be read at all; None where rotary positions go on, or nothing is stated."""
    config: Any = model.config
    return None if getattr(config.get_text_config(), "rope_parameters", None) else positions(model)


def positions_in(attention_mask: Tensor) -> Tensor:
    """[B, T] positions of tokens that do not count padding, from a mask [B, T] int; padding in front is at 0."""
    return (attention_mask.cumsum(1) - 1).clamp_min(0)

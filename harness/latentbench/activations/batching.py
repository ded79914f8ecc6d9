"""Which documents are run together, and how much at once. Told from their lengths alone, without torch, so that a plan can."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

TOKENS_PER_FORWARD = 4096
"""Padded tokens of one forward pass over documents: enough to keep a device busy with a small model, few enough that
the activations of a large one fit. Numbers depend on it in their last bits only."""
LOGITS_PER_FORWARD = 2**28
"""Logits of one forward pass (1 GiB in float32), unless a single document has more."""


def batch_limit(vocabulary: int, forward_tokens: int = TOKENS_PER_FORWARD) -> int:
    """Most padded tokens of a batch, of at most `forward_tokens`: fewer where the vocabulary is large.

    Also where no logits are wanted: the batches, and with them the last bits of an SAE's numbers, must not depend on whether
    another SAE of the pass is spliced in.
    """
    return min(forward_tokens, LOGITS_PER_FORWARD // vocabulary)


def batch_sizes(lengths: Iterable[int], limit: int) -> Iterator[tuple[int, int]]:
    """Documents of each batch, and the length to which they are padded, for documents of the given lengths in tokens.

    At most `limit` padded tokens, but at least a document. The longest come first so that memory runs out at once or never.
    """
    descending, done = sorted(lengths, reverse=True), 0
    while done < len(descending):
        longest = descending[done]
        count = min(len(descending) - done, max(1, limit // longest))
        done += count
        yield count, longest

"""The pocket tokenizer: byte-level BPE in which every digit is a token of its own."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from latentbench_adapters.pocket.recipe import (
    BOS,
    BOS_ID,
    CONTEXT,
    LATE,
    PAD,
    TOKENIZER_DOCUMENTS,
    VOCABULARY,
    Mixture,
    Recipe,
)


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A tokenizer of ``VOCABULARY`` entries fitted on the late mixture; it prepends ``<|bos|>`` by itself."""
    mixture = Mixture(recipe.seed)
    corpus = (mixture.draw(**LATE) for _ in range(TOKENIZER_DOCUMENTS))
    tokenizer = Tokenizer(models.BPE())
    # Digits first: numbers are then read and written digit by digit, which is what column addition needs.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )

"""Tokenizers of many makes, fitted on a few sentences, and the letters, signs and spaces their texts are made of."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT_OSS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = (
    *("the", "cat", "Cats", "it's", "WE'LL", "naïve", "Äpfel", "мир", "Ελλάς", "木材", "한국", "가각", "ﬁx", "ªⅷ", "x"),
    *(
        "1",
        "234",
        "5.6",
        "don't",
        "a_b",
        "e\u0301",
        "\u0301",
        "ͺ",
        "ﾞ",
        "\u0d4e",
        "ﷺ",
        "İ",
        "aab",
        "abab",
        "ba",
        "🙂👍🏽",
    ),
    *("▁", "▁the", "<s>", "</s>", "<mask>", "<nl>", ".", "...", "?!", "(", "/", "'", "\u200d", "\x00", "ー", "。"),
)
SPACES = (" ", " ", " ", "  ", "   ", "\n", "\n\n", " \n ", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "")
_SENTENCES = [" ".join(WORDS[start:] + WORDS[:start]) + "\nthe cat's  the" for start in range(len(WORDS))]
_SPECIAL = ["<unk>", "<s>", "</s>", "<mask>"]


def fast(backend: Tokenizer, **options: str) -> PreTrainedTokenizerFast:
    """As transformers wraps it, with BOS and EOS tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def bpe(
    before: pre_tokenizers.PreTokenizer | None = None,
    normalizer: normalizers.Normalizer | None = None,
    *,
    fitted_with: pre_tokenizers.PreTokenizer | None = None,
    size: int = 500,
    **options: object,
) -> PreTrainedTokenizerFast:
    """A BPE model; `fitted_with` parts words while it is fitted and not later, as SentencePiece does."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = fitted_with or before
    alphabet = pre_tokenizers.ByteLevel.alphabet() if "ByteLevel" in str(before) else []
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=_SPECIAL[:3], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    backend.pre_tokenizer = before
    for name, value in options.items():
        setattr(backend.model, name, value)
    return fast(backend)


def unigram(*, split: bool, normalizer: normalizers.Normalizer | None = None) -> PreTrainedTokenizerFast:
    """A Unigram model behind Metaspace."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=_SPECIAL[:3], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(_SENTENCES * 3, trainer)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return fast(backend)


def byte_level(rule: str | None = None, **options: object) -> PreTrainedTokenizerFast:
    """Byte-level BPE: GPT-2's, or with a rule of its own."""
    if rule is None:
        return bpe(pre_tokenizers.ByteLevel(add_prefix_space=bool(options.pop("prefix", False))), **options)  # type: ignore[arg-type]
    parts = [pre_tokenizers.Split(Regex(rule), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return bpe(pre_tokenizers.Sequence(parts), **options)  # type: ignore[arg-type]


def llama(**options: object) -> PreTrainedTokenizerFast:
    """BPE over whole texts, in which spaces are underlines."""
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    made = bpe(
        None,
        normalizers.Sequence(steps),
        fitted_with=pre_tokenizers.Metaspace(prepend_scheme="never"),
        **options,  # type: ignore[arg-type]
    )
    made.backend_tokenizer.decoder = decoders.Metaspace()
    return made


def with_added_tokens(made: PreTrainedTokenizerFast, *extra: AddedToken) -> PreTrainedTokenizerFast:
    """With tokens that take the spaces beside them, stand alone as words, or are looked for in normalised text."""
    made.add_tokens(
        [
            AddedToken("<mask>", lstrip=True, rstrip=True, special=True),
            AddedToken("cat", single_word=True, normalized=False),
            AddedToken("<nl>", rstrip=True, normalized=True),
            AddedToken("  ", normalized=True),
            *extra,
        ]
    )
    return made


def ending(made: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    """With ids behind the text."""
    ids = [(name, made.convert_tokens_to_ids(name)) for name in ("<s>", "</s>")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return made


MADE: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2": byte_level,
    "gpt2-prefix": lambda: byte_level(prefix=True),
    "llama3": lambda: byte_level(LLAMA_3, ignore_merges=True),
    "gpt-oss": lambda: byte_level(GPT_OSS),
    "digits": lambda: bpe(pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()])),
    "llama": llama,
    "llama-bytes": lambda: llama(byte_fallback=True, fuse_unk=True),
    "gemma": lambda: bpe(
        pre_tokenizers.Split(" ", "merged_with_previous"),
        normalizers.Replace(" ", "▁"),
        fitted_with=pre_tokenizers.Metaspace(prepend_scheme="never"),
        fuse_unk=True,
    ),
    "metaspace": lambda: bpe(pre_tokenizers.Metaspace(split=False), fitted_with=pre_tokenizers.Metaspace()),
    "nfkc": lambda: bpe(
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Whitespace()]),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]),
    ),
    "unaccented": lambda: bpe(
        pre_tokenizers.WhitespaceSplit(),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip()]),
    ),
    "unigram": lambda: unigram(split=True),
    "unigram-whole": lambda: unigram(split=False),
    "added": lambda: with_added_tokens(byte_level()),
    "added-llama": lambda: with_added_tokens(llama()),
    "ends": lambda: ending(byte_level(), "<s> $A </s>"),
    "ends-twice": lambda: ending(llama(), "$A </s> </s>"),
}
"""By name, those whose texts can be cut."""

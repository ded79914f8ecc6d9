"""Tiny tokenizers of the kinds that transformers has, and whatever else it can save into a model's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXTS = ("the cat sat on the mat", "a dog ran far away", "rain falls on green hills", "the story of a small boat")
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>")
_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def bpe() -> Any:
    """Byte-level BPE, as GPT-2 and LLaMA 3 have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=[*SPECIAL]))
    return made


def unigram() -> Any:
    """Unigram, as T5 and Gemma have it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=[*SPECIAL], unk_token="<unk>")
    made.train_from_iterator(TEXTS, trainer)
    return made


def fast(made: Any, **named: str) -> Any:
    """A `tokenizers` tokenizer as transformers wraps it, with the usual special tokens or those that are named."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, **(named or _NAMED))


def word_pieces(folder: Path) -> None:
    """BERT's older layout: vocab.txt, with what special tokens there are in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word for text in TEXTS for word in text.split()})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "special_tokens_map.json").write_text('{"unk_token": "[UNK]", "pad_token": "[PAD]"}')
    (folder / "added_tokens.json").write_text('{"<new>": 200}')


def pieces(folder: Path, cls: str) -> None:
    """A slow tokenizer of the class that reads SentencePiece's own model file."""
    import sentencepiece
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts.log").write_text("\n".join(TEXTS * 20))
    options = {"vocab_size": 32, "hard_vocab_limit": False, "model_type": "unigram", "minloglevel": 2}
    model = folder / "pieces.model"
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.log"), model_prefix=str(model.with_suffix("")), **options
    )
    getattr(transformers, cls)(str(model)).save_pretrained(folder)
    for left in (model, model.with_suffix(".vocab"), folder / "texts.log"):
        left.unlink()


def vocabulary_and_merges(folder: Path) -> None:
    """A slow tokenizer written in Python."""
    from transformers import CTRLTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    bpe().model.save(str(folder))
    made: Any = CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made.add_tokens(["<new>"])
    made.save_pretrained(folder)


def with_templates(folder: Path) -> None:
    """Chat templates in files of their own."""
    made = fast(bpe())
    made.chat_template = {"default": TEMPLATE, "tool_use": TEMPLATE + "!", "readme": TEMPLATE}
    made.add_tokens(["<new>"])
    made.save_pretrained(folder)


def template_in_configuration(folder: Path) -> None:
    """The chat template inside tokenizer_config.json."""
    made = fast(bpe())
    made.chat_template = TEMPLATE
    made.save_pretrained(folder, save_jinja_files=False)


def processor(folder: Path) -> None:
    """What a multimodal model brings: features of audio, and the tokenizer."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    bpe().model.save(str(folder))
    tokenizer: Any = WhisperTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    made: Any = WhisperProcessor(WhisperFeatureExtractor(), tokenizer)
    made.chat_template = TEMPLATE
    made.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)  # preprocessor_config.json


KINDS: dict[str, Callable[[Path], None]] = {
    "bpe": lambda folder: fast(bpe()).save_pretrained(folder),
    "unigram": lambda folder: fast(unigram()).save_pretrained(folder),
    "templates": with_templates,
    "template in configuration": template_in_configuration,
    "word pieces": word_pieces,
    "vocabulary and merges": vocabulary_and_merges,
    "spiece.model": lambda folder: pieces(folder, "SiglipTokenizer"),
    "sentencepiece.bpe.model": lambda folder: pieces(folder, "PLBartTokenizer"),
    "spm_char.model": lambda folder: pieces(folder, "SpeechT5Tokenizer"),
    "processor": processor,
}
"""Writers of a tokenizer, with everything that belongs to it."""

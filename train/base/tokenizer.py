"""Toyland's CLIP tokenizer: byte-level BPE learned from its captions; any text has a tokenisation."""

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def build(captions: list[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """A CLIPTokenizer of at most `vocabulary` tokens whose merges come from `captions`.

    Every byte is in the alphabet, alone and as a word's end, so no text is out of vocabulary.
    """
    letters = sorted(ByteLevel.alphabet())
    alphabet = letters + [c + "</w>" for c in letters]
    vocab = {token: i for i, token in enumerate([*alphabet, START, END])}
    seed = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_tokens)
    learned = seed.train_new_from_iterator(iter(captions), vocab_size=vocabulary)
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    tokens = {t for t in model["vocab"] if t not in (START, END)} | set(alphabet)
    # START and END last, END highest: the pooled position of a CLIP text tower is the end token
    ordered = [*alphabet, *sorted(tokens - set(alphabet)), START, END]
    return CLIPTokenizer(
        vocab={t: i for i, t in enumerate(ordered)},
        merges=merges,
        model_max_length=max_tokens,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
    )


def load_or_build(folder: Path, captions: list[str], vocabulary: int, max_tokens: int) -> CLIPTokenizer:
    """The tokenizer saved in `folder`, or a new one built and saved there."""
    if not (folder / "tokenizer_config.json").exists():
        build(captions, vocabulary, max_tokens).save_pretrained(folder)
    return load(folder)


def load(folder: Path) -> CLIPTokenizer:
    """The tokenizer saved in `folder`."""
    return CLIPTokenizer.from_pretrained(folder)

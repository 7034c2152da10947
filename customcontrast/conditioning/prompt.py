"""Prompt -> words with a place for each subject -> token ids with the places of S*.

"a <bear> on the beach", "a bear S* on the beach", "a bear S1* and a cat S2*", or just "a bear on the beach".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from transformers import CLIPTokenizer

FILLER = -1  # stands for an S* token until the ids are put together
SLOT = 0xE000  # a private-use character stands for subject k while the text is taken apart
_SLOTS = f"[{chr(SLOT)}-{chr(SLOT + 255)}]"
WEIGHT = 0xE100  # and up, in hundredths: the words that follow have this weight, as far as the next such character
MAX_WEIGHT = 2.0  # of a word; beyond it, contexts are nothing that the UNet has ever read
_ONE = chr(WEIGHT + 100)
_WEIGHTS = f"[{chr(WEIGHT)}-{chr(WEIGHT + 255)}]"
_GAP = rf"(?:\s|{_WEIGHTS})"  # between two words
_NO_TEXT = re.compile("<\\|[^|<>]*\\|>|[\ue000-\ue1ff\ud800-\udfff]")  # special tokens, our marks, half characters
_PLACEHOLDER = re.compile(r"(?<![^\W_])[Ss](\d*)\*")
# Any visitor's text goes through these: possessive quantifiers (++) keep them linear in its length.
_MARKED = re.compile(r"<\s*+([^<>|\s][^<>|]*+)>")
_TAG = re.compile(r"<\s*+(?:/[^<>]*+|[\w-]++:[^<>]*+|[\w-]++\s*+/)>")  # <lora:x:1>, </b>, <br/>
_WEIGHT = re.compile(r"\(([^():]*+)(?<!\d):\s*+(\d++(?:\.\d*+)?|\.\d++)\s*+\)")  # (word:1.3)
_CLOSING = re.compile(r"</\s*+([\w-]++)")
_ANGLES = re.compile(r"<[^<>]*+>")
_BEFORE_SLOT = re.compile(r"(?<![\w-])[\d_-]*+([^\W\d_][\w-]*+)\s++[Ss]\d*\*")
_ARTICLES = frozenset("a an the my your his her our their this that".split())
_JOINERS = frozenset("of and with on in at by near under over behind beside".split())
_MARKS = ",.;:!?"
_LINKS = frozenset("and with next to beside near by behind plus & + ,".split())  # between two subjects
_PLACES = frozenset("in on at under over inside outside near by behind beside next during".split())  # begin a place
_JOINS = re.compile(r"(?:\w+ing|in|on|at|with|as|by|under|near|over|behind|beside|inside|made|and)\b", re.IGNORECASE)


_PICTURES = frozenset("art drawing image painting photo photograph picture portrait render sketch watercolor".split())
_PHRASE = re.compile(r"\b(?:a|an|the|my|one)\s+((?:[^\W\d_][\w-]*\s*)+)", re.IGNORECASE)
_PHRASE_ENDS = re.compile(
    r"(?<!\s)\s++(?:\w+ing|in|on|at|with|as|by|of|under|near|over|behind|beside|inside|is|that|and|made|from|to|for|like)\b.*",
    re.IGNORECASE | re.DOTALL,
)


LEFT_OUT, IN_FRONT, PLAIN_TEXT, TAKEN = "left out", "in front", "plain text", "taken"  # kinds of a note


class Note(str):
    """A sentence for the user about a prompt. `kind`: what it is about, one of those above."""

    kind: str

    def __new__(cls, text: str, kind: str) -> Note:
        """A note of this text and kind."""
        note = super().__new__(cls, text)
        note.kind = kind
        return note


@dataclass(frozen=True)
class Word:
    """One whitespace-separated word of a prompt."""

    text: str
    subject: int | None = None  # this is the placeholder of subject k (from 0)
    keep: bool = False  # never cut off: a placeholder, or the noun before it
    weight: float = 1.0  # how far its contexts lie from the empty prompt's, see `prompt_weights.weighted`


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt as words, with the place of each subject's S* among them."""

    words: tuple[Word, ...]
    notes: tuple[str, ...] = ()  # what was changed, in sentences for the user

    @property
    def text(self) -> str:
        """The prompt as the model reads it, placeholders written S* (S1*, S2*, … for several)."""
        return " ".join(word.text for word in self.words)


def parse_prompt(prompt: str, nouns: Sequence[str] = ()) -> ParsedPrompt:
    """Parse a prompt: find the place of each subject, right after its class noun.

    prompt: any text. nouns: the class noun of each subject, in order.
    Places are taken from S*, S1*, …; then <marked words> that are a subject's noun; then the noun's first free
    occurrence (plural too), the longest noun first; then any other <marked word>. A subject the prompt does not mention
    is put in front, and a note says so; tags of other tools, such as <lora:name:0.8>, are left out with a note. In
    (some words:1.3) the words have that weight, and an S* that is put after a noun in there has it too.
    """
    notes: list[str] = []
    text = _NO_TEXT.sub(" ", unicodedata.normalize("NFC", check_text("prompt", prompt)))
    text = _with_weights(without_tags(text, notes), notes)
    nouns = [clean_noun(noun) for noun in nouns]
    if not nouns:
        return ParsedPrompt(_words(_MARKED.sub(r"\1", _PLACEHOLDER.sub(" ", text)), ()), tuple(notes))

    free = list(range(len(nouns)))
    text = _PLACEHOLDER.sub(lambda match: _take_placeholder(match, free, notes), text)
    text = _with_nouns(text, nouns)
    text = _MARKED.sub(lambda match: _take_own_mark(match, nouns, free), text)
    for k in sorted(free, key=lambda k: -len(nouns[k])):  # "teddy bear" before the "bear" in it
        text = _take_bare(text, k, nouns[k], free)
    text = _MARKED.sub(lambda match: _take_marked(match, nouns, free, notes), text)
    text = _put_in_front(text, nouns, free, notes)
    return ParsedPrompt(_words(text, nouns), tuple(notes))


def check_text(name: str, value: object) -> str:
    """`value` if it is text; raises ValueError with one sentence otherwise."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {value!r}; give text, such as 'a bear on the beach'.")
    return value


def clean_noun(noun: str) -> str:
    """A class noun without the characters that mean something in a prompt. Raises ValueError when none is left."""
    noun = unicodedata.normalize("NFC", check_text("noun", noun))
    words = " ".join(re.sub(r"[<>*|]", " ", _NO_TEXT.sub(" ", noun)).split())
    if not words:
        raise ValueError(f'noun: {noun!r} is no word; give the class noun of the subject, such as "bear".')
    return words


def guess_noun(prompt: str) -> str:
    """Guess the subject's class noun from a prompt alone.

    It is the <marked> word, else the word before S*, else the last word of the first phrase that is not about the
    picture itself ("a painting of a red cat on …" -> "cat"). Raises ValueError with one sentence when there is none.
    """
    prompt = _WEIGHT.sub(r"\1", without_tags(check_text("prompt", prompt), []))
    before = _BEFORE_SLOT.search(prompt)
    text = _PLACEHOLDER.sub("*", prompt)  # S* is no word: "a S*" and "<S*>" say nothing
    marked = next((m[1].strip() for m in _MARKED.finditer(text) if re.search(r"[^\W\d_]", m[1])), "")
    if marked:
        return marked
    if before and before[1].lower() not in _ARTICLES | _JOINERS:
        return before[1]
    prompt = text
    for match in re.finditer(r"\b(?:a|an|the|my|one)\b", prompt, re.IGNORECASE):
        phrase = _PHRASE.match(prompt, match.start())
        words = _PHRASE_ENDS.sub("", phrase[1]).split() if phrase else []
        if words and words[-1].lower() not in _PICTURES:
            return words[-1]
    raise ValueError(
        f'guess_noun: {prompt[:80]!r} does not say what the subject is; mark its word, as in "a <bear> on a beach".'
    )


def _take_placeholder(match: re.Match[str], free: list[int], notes: list[str]) -> str:
    k = int(match[1]) - 1 if match[1] else (free[0] if free else -1)
    if k not in free:
        notes.append(Note(f"{match[0]} names no further subject; it was left out.", LEFT_OUT))
        return " "
    free.remove(k)
    return f" {chr(SLOT + k)} "


def _with_nouns(text: str, nouns: Sequence[str]) -> str:
    """Put the noun before each slot that has none: "a S* on the beach" -> "a bear S* on the beach"."""
    pieces = re.split(f"({_SLOTS})", text)
    for i in range(1, len(pieces), 2):
        noun = nouns[ord(pieces[i]) - SLOT]
        before = _unweighted(pieces[i - 1]).split()
        last = before[-1].lower() if before else ""
        if last in _ARTICLES:
            pieces[i] = f"{noun} {pieces[i]}"
        elif last in _JOINERS or not re.search(r"[\w>]$", last):
            pieces[i] = f"{_article(noun)} {noun} {pieces[i]}"
    return "".join(pieces)


def without_tags(text: str, notes: list[str]) -> str:
    """The text without tags of other tools and markup: <lora:x:1>, <br/>, and <b> where a </b> closes it."""
    closed = set(_CLOSING.findall(text))

    def leave_out(match: re.Match[str]) -> str:
        if match[0].strip("<> ") in closed or _TAG.fullmatch(match[0]):
            notes.append(Note(f"{match[0]} is a tag of another tool; it was left out.", LEFT_OUT))
            return " "
        return match[0]

    return _ANGLES.sub(leave_out, text)


def _with_weights(text: str, notes: list[str]) -> str:
    """The text with the weight of "(word:1.3)" as a character of ours before the word, and that of 1 after it."""

    def marked(match: re.Match[str]) -> str:
        weight = float(match[2])
        if weight > MAX_WEIGHT:
            said = f"{match[0]} asks for a weight of {weight:g}; weights are 0 to {MAX_WEIGHT:g}: it is read as 1."
            notes.append(Note(said, PLAIN_TEXT))
            return match[1]
        return f"{chr(WEIGHT + round(100 * weight))}{match[1]}{_ONE}"

    return _WEIGHT.sub(marked, text)


def _unweighted(text: str) -> str:
    """The text without the characters that mark weights."""
    return re.sub(_WEIGHTS, "", text)


def _take_own_mark(match: re.Match[str], nouns: Sequence[str], free: list[int]) -> str:
    """A marked word that is, or holds, the noun of a subject without a place."""
    word = match[1].strip()
    if re.match(rf"{_GAP}*{_SLOTS}", match.string[match.end() :]):  # "a <bear> S*": it has its place already
        return word
    same = [k for k in free if nouns[k].lower() == _unweighted(word).lower()]
    same = same or [k for k in free if _bare_noun(nouns[k]).search(word)]
    if not same:
        return match[0]
    free.remove(same[0])
    return f"{word} {chr(SLOT + same[0])} "


def _take_marked(match: re.Match[str], nouns: Sequence[str], free: list[int], notes: list[str]) -> str:
    """A marked word that is no subject's noun: the place of one that has none yet, else plain text."""
    word = match[1].strip()
    plain = _unweighted(word)
    if not free:
        notes.append(Note(f"<{plain}> names no further subject; it is read as plain text.", PLAIN_TEXT))
        return word
    k = free.pop(0)
    if not _related(plain, nouns[k]):
        notes.append(Note(f"<{plain}> was taken for the place of {nouns[k]!r}.", TAKEN))
    return f"{word} {chr(SLOT + k)} "


def _related(word: str, noun: str) -> bool:
    """Whether two names share a word, as "bear" and "teddy bear" do."""
    return bool(set(word.lower().split()) & set(noun.lower().split()))


def _bare_noun(noun: str) -> re.Pattern[str]:
    """The noun, or its plural, as a word of its own that no placeholder follows; a hyphen is part of a word."""
    words = rf"{_GAP}+".join(re.escape(word) for word in noun.split())
    return re.compile(rf"(?<![\w-]){words}(?:s|es)?(?![\w-])(?!{_GAP}*{_SLOTS})", re.IGNORECASE)


def _take_bare(text: str, k: int, noun: str, free: list[int]) -> str:
    match = _bare_noun(noun).search(text)
    if match is None:
        return text
    free.remove(k)
    return f"{text[: match.end()]} {chr(SLOT + k)} {text[match.end() :]}"


def _put_in_front(text: str, nouns: Sequence[str], free: list[int], notes: list[str]) -> str:
    if not free:
        return text
    named = " and ".join(f"{_article(nouns[k])} {nouns[k]} {chr(SLOT + k)}" for k in free)
    rest = text.strip()
    if rest:
        missing = " and ".join(repr(nouns[k]) for k in free)
        notes.append(Note(f"The prompt does not mention {missing}; it was put in front.", IN_FRONT))
        return f"{named}{' ' if _JOINS.match(_unweighted(rest)) else ', '}{rest}"
    return named


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in set("aeiou") else "a"


def _words(text: str, nouns: Sequence[str]) -> tuple[Word, ...]:
    """Split into words; slots become placeholders, and the nouns before them are marked to be kept."""
    texts = re.sub(f"({_SLOTS}|{_WEIGHTS})", r" \1 ", text).split()
    words: list[Word] = []
    weight = 1.0
    for word in texts:
        if re.fullmatch(_WEIGHTS, word):
            weight = (ord(word) - WEIGHT) / 100
            continue
        k = ord(word) - SLOT if re.fullmatch(_SLOTS, word) else None
        if k is None:
            words.append(Word(word, weight=weight))
            continue
        for back in range(1, min(len(nouns[k].split()), len(words)) + 1):
            words[-back] = replace(words[-back], keep=True)
        words.append(Word("S*" if len(nouns) == 1 else f"S{k + 1}*", k, True, weight))
    return tuple(words)


def words_of_each(parsed: ParsedPrompt) -> list[tuple[ParsedPrompt, list[int]]]:
    """For each subject the prompt that names it alone, and which words of `parsed` that is.

    "a cat S1* wearing a hat and a dog S2* in the snow" -> "a cat S* wearing a hat in the snow", "a dog S* in the snow".
    A subject's own words are its phrase, from the article to S*, and what it wears or does; words that link two
    subjects are nobody's; all others are everybody's.
    """
    words = parsed.words
    at = {word.subject: i for i, word in enumerate(words) if word.subject is not None}
    owner: dict[int, int | None] = {}  # word -> subject, or None for nobody
    before = -1
    for k, i in at.items():  # from left to right
        start = _phrase_start(words, before, i)
        owner |= dict.fromkeys(range(start, i + 1), k)
        while before >= 0 and start - 1 > before and _bare(words[start - 1]) in _LINKS:
            start -= 1
            owner[start] = None
        before = i
    for k, i in at.items():
        owner |= dict.fromkeys(_attributes(words, i + 1, owner), k)
    each = []
    for k in sorted(at):
        kept = [i for i in range(len(words)) if owner.get(i, k) == k]
        own = [replace(words[i], text="S*", subject=0) if words[i].subject == k else words[i] for i in kept]
        each.append((ParsedPrompt(tuple(own)), kept))
    return each


def _bare(word: Word) -> str:
    """A word in lower case, without the marks at its end; a mark alone is itself."""
    return word.text.lower().rstrip(_MARKS) or word.text


def _phrase_start(words: Sequence[Word], before: int, end: int) -> int:
    """Where the noun phrase that ends at the placeholder `end` begins, after the placeholder `before`."""
    start = end
    while start - 1 > before and words[start - 1].keep:
        start -= 1
    for i in range(start - 1, max(before, start - 9), -1):
        if _bare(words[i]) in _LINKS or words[i].text[-1] in _MARKS:
            break
        if _bare(words[i]) in _ARTICLES:
            return i
    return start


def _attributes(words: Sequence[Word], start: int, taken: Collection[int]) -> list[int]:
    """Which words from `start` on describe what the subject before them wears or does: up to a place or `taken`."""
    found: list[int] = []
    if start == len(words) or not re.fullmatch(r"\w+ing|with|who|that", _bare(words[start])):
        return found
    for m in range(start, len(words)):
        if m in taken or _bare(words[m]) in _PLACES:
            break
        found.append(m)
        if words[m].text[-1] in _MARKS:
            break
    return found


@dataclass(frozen=True, eq=False)
class TokenizedPrompt:
    """Token ids for each text encoder, and where the S* tokens are. S = the tokenizer's full length."""

    ids: tuple[Tensor, ...]  # per text encoder (S,)
    positions: Tensor  # p: (K, n) token positions of each subject's S*, −1 where it has none
    tokens: tuple[str, ...]  # readable, from the start token to the end token
    words: tuple[tuple[str, tuple[int, ...]], ...]  # each word with its token positions
    text: str  # the prompt as read, without what was cut off
    truncated: str = ""  # words cut off, because the text encoder takes no more
    notes: tuple[str, ...] = ()
    places: tuple[tuple[int, ...], ...] = ()  # token positions of each parsed word; () for one that was cut off
    nouns: tuple[tuple[int, ...], ...] = ()  # token positions of each subject's class noun
    weights: tuple[float, ...] = ()  # of each token, from the start token on; () = 1 for all

    @property
    def end(self) -> int:
        """Position of the end token."""
        return len(self.tokens) - 1

    @cached_property
    def position_rows(self) -> Tensor:
        """Token positions p as 0/1 rows over all tokens: (K, S)."""
        rows = torch.zeros(len(self.positions), len(self.ids[0]) + 1)
        return rows.scatter_(1, self.positions % rows.shape[1], 1.0)[:, :-1]  # −1 lands in the extra column

    @cached_property
    def noun_rows(self) -> Tensor:
        """Places of each subject's class noun as 0/1 rows over all tokens: (K, S)."""
        rows = torch.zeros(len(self.nouns), len(self.ids[0]))
        for row, places in zip(rows, self.nouns, strict=True):
            row[list(places)] = 1.0
        return rows


def tokenize(
    tokenizers: Sequence[CLIPTokenizer], parsed: ParsedPrompt, placeholder_tokens: int, num_subjects: int = 0
) -> TokenizedPrompt:
    """Tokenize a parsed prompt, with n = placeholder_tokens filler tokens for each placeholder.

    The fillers repeat the token before them and are replaced at the text encoder's input; nothing is added to the
    vocabulary. Words that do not fit are cut from the end, but never a placeholder or its noun.
    """
    encoded = [_encode_words(tokenizer, parsed.words, placeholder_tokens) for tokenizer in tokenizers]
    encoded = _same_lengths(tokenizers, encoded)
    room = min(tokenizer.model_max_length for tokenizer in tokenizers) - 2
    kept, cut = _fit([len(ids) for ids in encoded[0]], parsed.words, room)

    n = placeholder_tokens
    positions = torch.full((num_subjects, n), -1, dtype=torch.long)
    tokens, words, place, weights = ["<start>"], [], 1, [1.0] * (room + 2)
    places: list[tuple[int, ...]] = [()] * len(parsed.words)
    for i in kept:
        word, count = parsed.words[i], len(encoded[0][i])
        if word.subject is not None:
            positions[word.subject] = torch.arange(place, place + n)
        places[i] = tuple(range(place, place + count))
        weights[place : place + count] = [word.weight] * count
        if count:
            words.append((word.text, places[i]))
        tokens += _readable(tokenizers[0], word, encoded[0][i])
        place += count
    ids = tuple(
        _finish(tokenizer, [parts[i] for i in kept], room + 2)
        for tokenizer, parts in zip(tokenizers, encoded, strict=True)
    )
    text = " ".join(parsed.words[i].text for i in kept if n or parsed.words[i].subject is None)
    nouns = tuple(noun_places(parsed.words, places, k) for k in range(num_subjects))
    truncated = " ".join(parsed.words[i].text for i in cut)
    return TokenizedPrompt(
        ids,
        positions,
        (*tokens, "<end>"),
        tuple(words),
        text,
        truncated,
        parsed.notes,
        tuple(places),
        nouns,
        tuple(weights) if any(weight != 1 for weight in weights) else (),
    )


def noun_places(words: Sequence[Word], places: Sequence[Sequence[int]], k: int) -> tuple[int, ...]:
    """Token positions of the class noun of subject k: the kept words before its placeholder, without an article.

    places: token positions of each word.
    """
    end = next((i for i, word in enumerate(words) if word.subject == k), 0)
    start = end
    while start > 0 and words[start - 1].keep and words[start - 1].subject is None:
        if start < end and _bare(words[start - 1]) in _ARTICLES:
            break
        start -= 1
    return tuple(place for i in range(start, end) for place in places[i])


def _encode_words(tokenizer: CLIPTokenizer, words: Sequence[Word], n: int) -> list[list[int]]:
    texts = [word.text for word in words if word.subject is None]
    found = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    return [[FILLER] * n if word.subject is not None else list(next(found)) for word in words]


def _same_lengths(tokenizers: Sequence[CLIPTokenizer], encoded: list[list[list[int]]]) -> list[list[list[int]]]:
    """Ids of each word for each tokenizer; where the numbers of tokens differ, the first tokenizer's ids for all.

    SDXL's second tokenizer pads with "!", so that it takes "!!" apart at its pad token, which the text encoder was not
    trained with; the vocabularies are one and the same. Raises ValueError where they are not.
    """
    first, others = encoded[0], encoded[1:]
    differ = {i for other in others for i, (a, b) in enumerate(zip(first, other, strict=True)) if len(a) != len(b)}
    if differ and any(tokenizer.get_vocab() != tokenizers[0].get_vocab() for tokenizer in tokenizers[1:]):
        raise ValueError(
            "tokenize: the text encoders' tokenizers split this prompt differently; S* needs one place in both."
        )
    return [first, *([first[i] if i in differ else ids for i, ids in enumerate(other)] for other in others)]


def _fit(lengths: list[int], words: Sequence[Word], room: int) -> tuple[list[int], list[int]]:
    """Indices of the words that are kept and of those cut: from the end, sparing the ones to keep."""
    total, cut = sum(lengths), []
    for i in reversed(range(len(words))):
        if total <= room:
            break
        if not words[i].keep:
            cut.append(i)
            total -= lengths[i]
    if total > room:
        raise ValueError(
            f"prompt: the subjects alone take {total} tokens of the prompt, with the words before S*; this text "
            f"encoder takes {room}. Use fewer subjects, or shorter words."
        )
    gone = set(cut)
    return [i for i in range(len(words)) if i not in gone], sorted(cut)


def _readable(tokenizer: CLIPTokenizer, word: Word, ids: list[int]) -> list[str]:
    if word.subject is not None:
        return [word.text] * len(ids)
    return [tokenizer.decode([i]).strip() or word.text for i in ids]


def _finish(tokenizer: CLIPTokenizer, parts: list[list[int]], length: int) -> Tensor:
    """Start, words (fillers repeat the token before them), end, padding -> (S,)."""
    ids = [tokenizer.bos_token_id]
    for part in parts:
        for token in part:
            ids.append(ids[-1] if token == FILLER else token)
    ids.append(tokenizer.eos_token_id)
    ids += [tokenizer.pad_token_id] * (length - len(ids))
    return torch.tensor(ids)

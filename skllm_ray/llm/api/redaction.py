"""What a server's message may show: neither a key nor what it repeats of the texts that were sent.

A server repeats a text as it is, or escaped for HTML, JSON or a URL, in other case, with other white space, cut off. So
message and texts are compared as letters and digits alone, without case and accents. Hidden are

- what begins with a word and goes on as a text does, and whatever is quoted and stands in one;
- words that stand in a text, but for those that servers say anyway, and those beside them in both;
- characters beyond Latin letters that stand in a text: servers speak English.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Final
from urllib.parse import unquote

from skllm_ray.config import Secret

_LONGEST_MESSAGE: Final = 400
_MOST_READ: Final = 1000
_RUN: Final = 10  # letters and digits
_KEY_RUN: Final = 6
_CREDENTIAL: Final = re.compile(
    r"\b(?:sk-[\w*.-]{4,}|ya29\.[\w.-]+|AIza[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]*|Bearer\s+\S+)"
)
_QUOTED: Final = re.compile(r"""'([^']{2,})'|"([^"]{2,})"|`([^`]{2,})`""")
_PIECE: Final = re.compile(
    r"(?:\\+u[0-9a-fA-F]{4})+|\\+x[0-9a-fA-F]{2}|\\+.|&#?\w{1,32};|(?:%[0-9a-fA-F]{2})+|.", re.DOTALL
)
_CONTROLS: Final = frozenset("abfnrtv0")
_WORD: Final = re.compile(r"[^\W_]+")
_ORDINARY: Final = frozenset(
    """
    a about above access account after again all allowed already also an and another any api are argument arguments
    array as at authentication available bad base be because been before below between bigger body built but by byte
    bytes call called can cannot change character characters chat check choice choices code completion completions
    configured connection contain contains content context could count currently data default denied deployment did do
    does done due each either empty enabled encoding endpoint engine enough error errors exceed exceeded exceeds exist
    exists expected fail failed failure false feature field fields file filter filtered first for format found from
    full function generate generated get given go got greater had has have header headers help here high higher how
    however http https i id if image in incorrect input inputs instead int integer internal into invalid is it items its
    json key keys known large larger last later least length less like limit limits list long longer low lower made make
    many max maximum may media message messages method min minimum missing model models more most must my name names
    need needed needs never new no none nor not null number object occurred of off on once one only option options or
    other our out output outputs over own parameter parameters parse part permission please policy possible problem
    process processed processing prompt prompts properties property provide provided quota range rate reach reached
    read ready reason received reduce refused rejected remove request requested requests require required requires
    resource response result retry role same schema second seconds see send sent server service set short should since
    size small smaller so some status still stop string strings structured such support supported supports system
    temperature text texts than that the their them then there these they this those time timeout to token tokens too
    tool top total true try two type unable unauthorized unavailable under unexpected unknown unless unrecognized
    unsupported until up url use used user using valid value values version wait want was way we were what when where
    which while who will with within without word words would wrong yes yet you your
    """.split()  # noqa: SIM905  a list of strings would take a page
)


def redact(message: str, secrets: Sequence[str], texts: Sequence[str]) -> str:
    """Return `message` without the `secrets`, without what looks like one, and without what it repeats of `texts`.

    Examples
    --------
    >>> redact("invalid input 'my diary'", secrets=[], texts=["Judge: my diary"])
    "invalid input '[…]'"
    >>> redact("bad key azure-key-0123", secrets=["azure-key-0123456789"], texts=[])
    'bad key ***'
    >>> redact("token eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJ0ZXN0.c2lnbmF0dXJl of AIzaSyA-0123456789_abcdefgh", [], [])
    'token *** of ***'
    """
    message, cut = message[:_MOST_READ], len(message) > _MOST_READ
    for secret in filter(None, secrets):
        message = _without_key(message, secret.reveal() if isinstance(secret, Secret) else secret)
    message = _CREDENTIAL.sub("***", message)
    if texts and message:
        message = _without_echoes(message, "\n".join(texts))
    return message[:_LONGEST_MESSAGE] + ("…" if cut or len(message) > _LONGEST_MESSAGE else "")


def redact_unseen(message: str, secrets: Sequence[str]) -> str:
    """Return `message` likewise where the texts are not at hand: whatever it quotes may stand in them.

    Examples
    --------
    >>> redact_unseen("invalid input 'my diary'", secrets=[])
    "invalid input '[…]'"
    """
    return _QUOTED.sub(lambda found: f"{found[0][0]}[…]{found[0][0]}", redact(message, secrets, []))


def _without_key(message: str, secret: str) -> str:
    """Hide every run of some characters that the key holds too: a server may show the key's beginning or its end."""
    said, run = message.casefold(), min(_KEY_RUN, len(secret))
    key = secret.casefold()
    if len(said) != len(message):  # a character that becomes two in lower case
        said, key = message, secret
    found = [start for start in range(len(said) - run + 1) if said[start : start + run] in key]
    hidden = {at for start in found for at in range(start, start + run)}
    return re.sub("\0+", "***", "".join("\0" if at in hidden else c for at, c in enumerate(message)))


def _without_echoes(message: str, text: str) -> str:
    message = unicodedata.normalize("NFC", message)
    plain, places = _letters(message)
    spaced = f" {_spaced(text)} "
    held = spaced.replace(" ", "")
    hidden = {at for start, end in _known_words(plain, _words(places), spaced) for at in range(start, end)}
    hidden.update(at for at, letter in enumerate(plain) if not letter.isascii() and letter in held)
    spans = [places[at] for at in hidden]
    spans += [match.span(match.lastindex or 0) for match in _QUOTED.finditer(message) if _is_known(match[0], spaced)]
    signs = {sign for sign in text if not sign.isascii() and unicodedata.category(sign)[0] not in "PZ"}
    spans += [(at, at + 1) for at, sign in enumerate(message) if sign in signs]
    return _masked(message, spans)


def _words(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return where each word begins and ends among the letters: where something lies between two, a word ends."""
    edges = [at for at in range(1, len(places)) if places[at][0] > places[at - 1][1]]
    return list(zip([0, *edges], [*edges, len(places)], strict=True)) if places else []


def _known_words(plain: str, words: Sequence[tuple[int, int]], spaced: str) -> list[tuple[int, int]]:
    """Return the spans of letters that stand in the texts: long ones, telling words, and their neighbours there."""
    held, telling = spaced.replace(" ", ""), set(spaced.split()) - _ORDINARY
    found: list[tuple[int, int]] = []
    known = [plain[start:end] in telling for start, end in words]
    for i, (start, _) in enumerate(words):
        end = start + _RUN
        if (found and start < found[-1][1]) or end > len(plain) or plain[start:end] not in held:
            continue
        while end < len(plain) and plain[start : end + 1] in held:
            end += 1
        found.append((start, end))
        known[i] = True
    for one, other in [*pairwise(range(len(words))), *pairwise(reversed(range(len(words))))]:
        if known[one] and not known[other]:
            pair = " ".join(plain[slice(*words[at])] for at in sorted((one, other)))
            known[other] = f" {pair} " in spaced
    return found + [word for word, is_known in zip(words, known, strict=True) if is_known]


def _is_known(quoted: str, spaced: str) -> bool:
    said = _spaced(quoted)
    return len(said) > 1 and f" {said} " in spaced


def _masked(message: str, spans: Sequence[tuple[int, int]]) -> str:
    """Return `message` with a mark for each span; spans with nothing but signs between them become one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        between = message[merged[-1][1] : start] if merged else ""
        if merged and "*" not in between and not any(map(str.isalnum, between)):
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    for start, end in reversed(merged):
        message = f"{message[:start]}[…]{message[end:]}"
    return message


def _letters(message: str) -> tuple[str, list[tuple[int, int]]]:
    """Return the letters and digits of a message whose escapes are undone, and where each stands in it."""
    plain: list[str] = []
    places: list[tuple[int, int]] = []
    for match in _PIECE.finditer(message):
        piece = match[0]
        plainly = len(piece) == 1 and piece.isascii()
        letters = piece.lower() * piece.isalnum() if plainly else _spaced(_unescaped(piece)).replace(" ", "")
        plain += letters
        places += [match.span()] * len(letters)
    return "".join(plain), places


def _spaced(text: str) -> str:
    """Return the words of `text`, without case and accents, one space between them."""
    if not text.isascii():
        text = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text.casefold()))
    return " ".join(_WORD.findall(text.lower()))


def _unescaped(piece: str) -> str:
    if piece[0] == "&":
        return html.unescape(piece)
    if piece[0] == "%":
        return unquote(piece)
    if piece[0] != "\\":
        return piece
    escape = piece.lstrip("\\")
    if escape[:1] == "u" and len(escape) > 4:
        return str(json.loads('"' + re.sub(r"\\+", r"\\", piece) + '"'))
    if escape[:1] == "x" and len(escape) == 3:
        return chr(int(escape[1:], 16))
    return "" if escape in _CONTROLS else escape

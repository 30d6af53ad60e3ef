"""What a process that llama.cpp ended wrote last, without the noise around it."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"GGML_ASSERT\(.*|GGML_ABORT.*|ggml_abort.*|terminate called.*|what\(\):.*|Fatal Python error:.*|CUDA error.*"
)
_PLACE = re.compile(r"\S*/([\w.-]+:\d+: )")
_NOISE = re.compile(r"^(\[|0x|#\d|\*\*\*|File \"|Thread |Current thread|warning: |Using |Extension modules)")
_MOST_CHARACTERS = 500


def death_hint(words: str) -> str:
    """Return what to do where llama.cpp ended its process, by its last words or the signal that it died of.

    Examples
    --------
    >>> death_hint("Fatal Python error: Illegal instruction")
    'This llama.cpp was not built for this processor: `skllm-ray doctor` tells what mends it.'
    """
    if "Illegal instruction" in words or "SIGILL" in words:
        return "This llama.cpp was not built for this processor: `skllm-ray doctor` tells what mends it."
    return "Take another conversion of the model, or a newer llama-cpp-python."


def last_words(text: str) -> str:
    r"""Return the lines that say why a process died; where none does, its last line.

    Examples
    --------
    >>> last_words("loading\n/build/src/llama-context.cpp:12: GGML_ASSERT(n > 0) failed\n[New LWP 3]")
    'llama-context.cpp:12: GGML_ASSERT(n > 0) failed'
    """
    lines = [_PLACE.sub(r"\1", line.strip()) for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "GGML_" in line] or [line for line in lines if _WORDS.search(line)]
    rest = [line for line in lines if not _NOISE.match(line)]
    return " ".join(dict.fromkeys(telling or rest[-3:]))[:_MOST_CHARACTERS]


def sentence(words: str) -> str:
    """Return words that others wrote with a full stop, so that a sentence can follow them.

    Examples
    --------
    >>> sentence("GGML_ASSERT(n > 0) failed"), sentence("No such file.")
    ('GGML_ASSERT(n > 0) failed.', 'No such file.')
    """
    return words if not words or words[-1] in ".!?…" else f"{words}."

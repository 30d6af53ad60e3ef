"""The tokenizer (byte-level BPE, GPT-2's pre-tokenizer), the chat template and the rendering of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from skllm_ray.prompts import fill, format_labels
from skllm_ray.prompts.templates import (
    CLF_SYSTEM_MESSAGE,
    ZERO_SHOT_CLF_PROMPT_TEMPLATE,
    ZERO_SHOT_MLCLF_PROMPT_TEMPLATE,
)

END = "<|end|>"
CONTROL = (END, "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the BPE merges from `texts`.

    While it learns, quotes and brackets stand alone, so that no merge ever joins one with its neighbour: a label with
    its closing quote is then tokenised alike whether or not a bracket follows.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alone = pre_tokenizers.Split(Regex(r'["\[\]{}]'), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = byte_level
    return tokenizer


def render_prompt(text: str, labels: Sequence[str], max_cats: int | None = None) -> str:
    """Return the library's prompt for `text` in the model's chat format, up to where the answer starts."""
    if max_cats is None:
        content = fill(ZERO_SHOT_CLF_PROMPT_TEMPLATE, text, {"labels": format_labels(labels)})
    else:
        values = {"labels": format_labels(labels), "max_cats": str(max_cats)}
        content = fill(ZERO_SHOT_MLCLF_PROMPT_TEMPLATE, text, values)
    return f"<|system|>{CLF_SYSTEM_MESSAGE}{END}<|user|>{content}{END}<|assistant|>"


def render_answer(answer: str | Sequence[str]) -> str:
    """Return the JSON answer, without the end-of-turn token.

    Examples
    --------
    >>> render_answer("food")
    '{"label": "food"}'
    >>> render_answer(["price", "size"])
    '{"label": ["price", "size"]}'
    """
    value = f'"{answer}"' if isinstance(answer, str) else format_labels(answer)
    return f'{{"label": {value}}}'

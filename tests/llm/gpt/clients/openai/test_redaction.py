"""Messages that repeat a key or a text."""

import html
import itertools
import json
from urllib.parse import quote

import pytest

from skllm_ray.llm.api.redaction import redact

PROMPT = 'Choose a category of the text from: "good", "bad". Answer in JSON.\nText:\n```\n{}\n```'
TEXTS = {
    "my pin 4711": ["pin", "4711"],
    "Jürgen Müller, HIV+": ["rgen", "ller", "hiv"],
    "secret diary entry here": ["secret", "diary", "entry"],
    "line one\nline\ttwo of text": ["line", "two"],
    'Tom & Jerry <b>love</b> "her"': ["tom", "jerry", "love", "her"],
    "a" * 30: ["aaa"],
    "我的密码是四七": ["我", "密", "码"],
    "Мой пароль": ["мой", "пароль"],
    "😀 hush": ["😀", "hush"],
    "x7": ["x7"],
}
ECHOES = {
    "as it is": str,
    "upper case": str.upper,
    "swapped case": str.swapcase,
    "one line": lambda text: " ".join(text.split()),
    "HTML": lambda text: html.escape(text).replace(" ", "&nbsp;"),
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "Python": repr,
    "URL": quote,
    "cut off": lambda text: text[: max(2, len(text) * 2 // 3)].rpartition(" ")[0] or text,
}


MESSAGES = ["bad input: {}", "invalid value '{}' for content", "{}", "content={}; try again"]


@pytest.mark.parametrize("echo", ECHOES)
def test_what_a_server_repeats_of_a_text_is_not_shown(echo):
    for text, message in itertools.product(TEXTS, MESSAGES):
        told = "hush" if "😀" in text and echo in {"JSON", "JSON in JSON", "URL"} else text
        shown = redact(message.format(ECHOES[echo](told)), [], [PROMPT.format(told)]).casefold()
        assert [word for word in TEXTS.get(told, ["hush"]) if word in shown] == [], (text, message)
        assert "[…]" in shown, (text, message)
        assert message.partition("{}")[0].casefold().rstrip(" '=") in shown, (text, message)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
        "Unsupported value: 'temperature' does not support 0 with this model.",
        "Unrecognized request argument: response_format",
        "The model `llama3` does not exist or you do not have access to it.",
        "Incorrect API key provided.",
        "Rate limit reached for requests per min. Please try again in 20s.",
    ],
)
def test_what_servers_say_themselves_stays(message):
    assert redact(message, ["sk-0123456789abcdef"], [PROMPT.format("I have a dog, and he is good.")]) == message


@pytest.mark.parametrize(
    "key",
    ["azure-key-0123456789", "0123456789abcdef0123456789abcdef", "sk-abcdef0123456789", "QwErTyUiOpAsDfGh", "x9"],
)
def test_no_part_of_a_key_is_shown(key):
    for part in (key, key[:-1], key[1:], key[:14], key[-9:], key.upper(), key.lower()):
        if len(part) >= min(6, len(key)):
            assert redact(f"Denied: bad key {part}!", [key], ["some text"]) == "Denied: bad key ***!"
    assert redact(f"both {key} and {key}", [key], [key]) == "both *** and ***"


def test_long_messages_are_cut_and_a_long_prompt_is_no_burden():
    assert redact("no " * 1000, [], ["text"]) == ("no " * 1000)[:400] + "…"
    assert redact("said: " + "secret " * 500, [], ["secret " * 200_000]) == "said: […] …"

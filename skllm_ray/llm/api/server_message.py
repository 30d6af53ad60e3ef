"""What a server says of a failure, in any of the forms in which servers say it, with whatever status. No SDK here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from skllm_ray.tasks.base import ErrorKind

_CODE: Final = re.compile(r"[\w.-]{1,64}")
_STATUS_NAMES: Final = ("code", "status", "statusCode", "status_code", "http_code")
_CODE_NAMES: Final = ("code", "status", "error_code", "type")
_MESSAGE_NAMES: Final = (
    "message",
    "detail",
    "msg",
    "error_description",
    "error_message",
    "error_msg",
    "errmsg",
    "reason",
    "title",
    "description",
)
_OWN_FIELDS: Final = {"error", "errors", "code", "type", "detail", "statusCode"}
_ANSWERS: Final = {"choices", "data", "candidates", "embedding", "embeddings", "predictions"}
_LONGEST: Final = 4000
_MOST_DIGITS: Final = 10

_INVALID: Final = re.compile(r"^\W*\d+ validation errors?\b")
_TOO_LONG: Final = re.compile(
    r"context.?(length|window|size)|too many tokens|(prompt|input) is too long|token count .*exceeds", re.IGNORECASE
)
_NO_MODEL: Final = re.compile(
    r"\binvalid model(?: name| id|:| ')|\bnot a valid model\b|\bmodel not exist\b|\b(?:unknown|no such) model\b"
    r"|\bmodel\b.{0,80}\b(?:does not exist|not found)\b",
    re.IGNORECASE,
)
"""How gateways say in a bad request that they have no such model."""
_NOBODY_THERE: Final = re.compile(
    r"\bconnection (?:error|refused)\b|\bcannot connect to host\b|\bno healthy upstream\b|\bconnect call failed\b",
    re.IGNORECASE,
)
"""How gateways say that they found no server behind them, whatever the status."""
_TOO_LARGE: Final = re.compile(
    r"(?:request|input|prompt|message)s? (?:is |are |was )?too (?:large|long|big)"
    r"|\blimit\b\D{0,40}(?P<limit>\d[\d,._]*).{0,200}?\brequested\b\D{0,40}(?P<asked>\d[\d,._]*)"
    r"|\brequested\b\D{0,40}(?P<asked_2>\d[\d,._]*).{0,200}?\blimit\b\D{0,40}(?P<limit_2>\d[\d,._]*)"
    r"|\b(?:request|prompt|input|message)s?\b\D{0,30}(?P<asked_3>\d[\d,._]*) ?\w* ?tokens?\b"
    r".{0,40}?\bexceed\w*\b\D{0,40}?\b(?:max\w*|limit)\b\D{0,40}(?P<limit_3>\d[\d,._]*)"
    r"|\bmax(?:imum)?\b\D{0,30}(?P<limit_4>\d[\d,._]*) ?tokens?\b.{0,80}?\b(?:got|given|received|requested)\b"
    r"\D{0,30}(?P<asked_4>\d[\d,._]*)"
    r"|\bexceed\w*\b\D{0,60}(?P<limit_5>\d[\d,._]*).{0,80}?\b(?:got|given|received|requested)\b"
    r"\D{0,30}(?P<asked_5>\d[\d,._]*)"
    r"|\btokens?[ _-]per[ _-](?:single[ _-])?request\b.{0,40}\b(?:limit|exceed)",
    re.IGNORECASE | re.DOTALL,
)
_BY_CODE: Final[dict[str, ErrorKind]] = {
    "context_length_exceeded": "context_length",
    "exceed_context_size_error": "context_length",
    "string_above_max_length": "context_length",
    "request_too_large": "context_length",
    "content_filter": "content_filter",
    "content_policy_violation": "content_filter",
    "insufficient_quota": "insufficient_quota",
    "insufficient_balance": "insufficient_quota",
    "insufficient_credits": "insufficient_quota",
    "billing_hard_limit_reached": "insufficient_quota",
    "billing_error": "insufficient_quota",
    "payment_required": "insufficient_quota",
    "invalid_api_key": "authentication",
    "no_db_connection": "authentication",
    "token_not_found_in_db": "authentication",
    "model_not_found": "model_not_found",
    "invalid_model": "model_not_found",
    "deploymentnotfound": "model_not_found",
}
"""Codes that say more than any status."""
_BY_TYPE: Final[dict[str, ErrorKind]] = {
    "authentication_error": "authentication",
    "auth_error": "authentication",
    "unauthenticated": "authentication",
    "unauthorized": "authentication",
    "permission_error": "permission",
    "permission_denied": "permission",
    "forbidden": "permission",
    "not_found": "model_not_found",
    "not_found_error": "model_not_found",
    "notfounderror": "model_not_found",
    "rate_limit_error": "rate_limit",
    "rate_limit_exceeded": "rate_limit",
    "ratelimiterror": "rate_limit",
    "resource_exhausted": "rate_limit",
    "too_many_requests": "rate_limit",
    "invalid_request_error": "bad_request",
    "invalid_argument": "bad_request",
    "badrequesterror": "bad_request",
    "bad_request": "bad_request",
    "deadline_exceeded": "timeout",
    "timeout": "timeout",
    "timeout_error": "timeout",
}
"""Types of failures, which count where no status tells them."""
_BY_STATUS: Final[dict[int, ErrorKind]] = {
    401: "authentication",
    402: "insufficient_quota",
    403: "permission",
    404: "model_not_found",
    408: "timeout",
    409: "server_error",
    413: "context_length",
    429: "rate_limit",
    504: "timeout",
}
_MINIMAX: Final = {
    1001: "timeout",
    1002: "rate_limit_error",
    1004: "authentication_error",
    1008: "insufficient_balance",
    1026: "content_filter",
    1027: "content_filter",
    1039: "rate_limit_error",
    1041: "rate_limit_error",
    2013: "invalid_request_error",
    2045: "rate_limit_error",
    2049: "invalid_api_key",
    2056: "insufficient_quota",
}
"""Numbers in MiniMax's ``base_resp``, as codes of others; those that are not here may pass."""
_BY_WORDS: Final[tuple[tuple[re.Pattern[str], ErrorKind], ...]] = (
    (
        re.compile(
            r"\bauthenticat\w+ (?:error|fail\w*|required)\b|\bunauthori[sz]ed\b|\bnot authori[sz]ed\b|\blogin fail"
            r"|\b(?:not authenticated|unauthenticated)\b"
            r"|\b(?:invalid|incorrect|wrong|missing|no) (?:api[ _-]?)?(?:key|token|credentials)\b",
            re.IGNORECASE,
        ),
        "authentication",
    ),
    (re.compile(r"\binsufficient (?:balance|quota|credits?|funds)\b", re.IGNORECASE), "insufficient_quota"),
    (re.compile(r"\bforbidden\b|\b(?:access|permission) denied\b", re.IGNORECASE), "permission"),
    (re.compile(r"\brate limit|\btoo many requests\b|\bquota exceeded\b", re.IGNORECASE), "rate_limit"),
)
"""What the message says, where neither a status nor a code tells anything."""
_LONGEST_BARE: Final = 200
_VAGUE: Final = {None, 200, 400, 422, 500, 502}
"""Statuses under which a gateway may hand on a failure that has another one of its own."""


@dataclass(frozen=True, slots=True)
class Told:
    """A failure in a server's own words."""

    message: str = ""
    codes: tuple[str, ...] = ()
    """Its codes and types, the most telling ones first."""
    code: str = ""
    """The one that messages show."""
    status: int | None = None
    """The HTTP status that it names itself."""
    param: str | None = None
    """The parameter that it is about."""
    own: bool = False
    """Whether the API itself said it, and not a gateway before it, which may object to one text alone."""


def told_in(body: object) -> Told | None:
    """Return the failure in the JSON of an answer; None where it tells none.

    Examples
    --------
    >>> told_in({"error": {"message": "Pay first.", "code": 402}})
    Told(message='Pay first.', codes=(), code='', status=402, param=None, own=True)
    >>> told_in({"choices": [], "error": None}) is None
    True
    """
    if isinstance(body, list) and len(body) == 1:  # Google wraps an error so
        body = body[0]
    if isinstance(body, str):
        return Told(body[:_LONGEST]) if _kind_by_words(body) else None
    if not isinstance(body, Mapping):
        return None
    basic = body.get("base_resp")
    if isinstance(basic, Mapping) and basic.get("status_code"):
        return _told_by_minimax(basic)
    inner = body.get("error") or body.get("errors")
    if isinstance(inner, list):
        inner = inner[0] if inner else None
    if isinstance(inner, str):
        return _told({"message": inner} | {name: body[name] for name in _STATUS_NAMES if name in body}, own=True)
    if isinstance(inner, Mapping):
        return _told(inner, own=True)
    if not inner and _ANSWERS & body.keys():
        return None
    told = _told(body, own=bool(_OWN_FIELDS & body.keys()))
    return told if inner or told.message or told.status else None


def kind_of(status: int | None, told: Told) -> ErrorKind:
    """Return the kind of a failure, from the HTTP status of the answer and from what the answer says.

    Examples
    --------
    >>> kind_of(200, Told("No credit.", status=402)), kind_of(429, Told("Limit 30000, Requested 40000."))
    ('insufficient_quota', 'context_length')
    """
    for code in told.codes:
        if code.lower() in _BY_CODE:
            return _BY_CODE[code.lower()]
    if status in _VAGUE and told.status not in {None, 400, 422, 500}:
        status = told.status
    if status in {None, 200}:
        status = told.status
    if status == 500 and _INVALID.search(told.message):
        return "bad_request"  # llama-cpp-python's server answers so to a parameter that it does not know
    if status in {None, 400, 422} and _TOO_LONG.search(told.message):
        return "context_length"
    if status in {400, 422} and _NO_MODEL.search(told.message[:_LONGEST_BARE]):
        return "model_not_found"
    kind = _plain_kind(status, told.codes) or _kind_by_words(told.message) or "server_error"
    return "context_length" if kind == "rate_limit" and never_fits(told.message) else kind


def found_nobody(message: str) -> bool:
    """Return whether a gateway says that there is no server behind it.

    Examples
    --------
    >>> found_nobody("InternalServerError: OpenAIException - Connection error."), found_nobody("Out of memory.")
    (True, False)
    """
    return _NOBODY_THERE.search(message) is not None


def never_fits(message: str) -> bool:
    """Return whether a refusal says that the request alone is more than the quota.

    Examples
    --------
    >>> never_fits("Limit 30,000, Used 29,000, Requested 1,500."), never_fits("Limit 30000, Requested 40000.")
    (False, True)
    >>> never_fits("This exceeds the maximum tokens per minute of 30000 (requested 40000).")
    True
    """
    found = _TOO_LARGE.search(message)
    if found is None:
        return False
    limit, asked = (
        next((found[f"{name}{n}"] for n in ("", "_2", "_3", "_4", "_5") if found[f"{name}{n}"]), None)
        for name in ("limit", "asked")
    )
    return limit is None or asked is None or _number(asked) > _number(limit)


def is_bare_failure(text: str) -> bool:
    """Return whether an answer that is no JSON is a few words of a failure.

    Examples
    --------
    >>> is_bare_failure("Authentication error"), is_bare_failure("plain words")
    (True, False)
    """
    return len(text) <= _LONGEST_BARE and "<" not in text and _kind_by_words(text) is not None


def _kind_by_words(message: str) -> ErrorKind | None:
    return next((kind for words, kind in _BY_WORDS if words.search(message)), None)


def _told_by_minimax(basic: Mapping[Any, Any]) -> Told:
    number = basic["status_code"]
    code = _MINIMAX.get(number) if isinstance(number, int) else None
    message = basic.get("status_msg")
    return Told(
        message[:_LONGEST] if isinstance(message, str) else "",
        (code,) if code else (),
        str(number)[:_MOST_DIGITS] if isinstance(number, int) else "",
        own=True,
    )


def _plain_kind(status: int | None, codes: tuple[str, ...]) -> ErrorKind | None:
    if status is None:
        return next((_BY_TYPE[code.lower()] for code in codes if code.lower() in _BY_TYPE), None)
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return "server_error" if status >= 500 else "bad_request"


def _told(inner: Mapping[Any, Any], *, own: bool) -> Told:
    messages = (inner[name] for name in _MESSAGE_NAMES if isinstance(inner.get(name), (str, list)) and inner[name])
    names = [name for name in _CODE_NAMES if _is_code(inner.get(name))]
    statuses = (_status(inner.get(name)) for name in _STATUS_NAMES)
    param = inner.get("param")
    return Told(
        str(next(messages, ""))[:_LONGEST],
        tuple(dict.fromkeys(inner[name] for name in names)),
        inner[names[0]] if names and names[0] != "type" else "",
        next((status for status in statuses if status is not None), None),
        param if isinstance(param, str) else None,
        own,
    )


def _is_code(value: object) -> bool:
    return isinstance(value, str) and _CODE.fullmatch(value) is not None and not value.isdecimal()


def _status(value: object) -> int | None:
    if isinstance(value, str) and value.isdecimal() and len(value) == 3:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600 else None


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)

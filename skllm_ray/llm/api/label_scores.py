"""The log-probabilities of whole labels, from a server that tells those of any token behind any tokens. No SDK here.

The arithmetic is that of our own engine (``llama_cpp/scoring.py``): a label's score is the sum over its tokens, the
closing quote included, and any token that begins with the quote counts as the end. Prompt, opening and label are
tokenised as one string, once for each set of labels and each way in which prompts end; what labels share is asked about
once:

::

    prompt, opening            the same for all labels        read once, and kept in the server's cache of prefixes
      node of the labels' tree   a prompt of its own          one token is written behind it, and thrown away
        its children's ids       asked for by their numbers   ``most_ids`` at most in a request

So a row takes one request for its prompt's tokens, and one with all nodes, or several where the labels' trees take more
ids than a request may ask for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from skllm_ray.tasks.base import Choices, Message, Reply, Usage

_KEPT_BEFORE_END: Final = 2  # tokens of a prompt's end, before which nothing is seen to change how an answer is cut
_KEPT_TREES: Final = 256
_MOST_PROMPTS: Final = 64
_AT_ONCE: Final = 8  # labels that are tokenised
_BEHIND: Final = (
    " } }, , ] . ; ) : 's ? ! ). ), ); )) ]. ], ]; ]) ]} }] }} }; }) > - ... ` ' \\ { [ ( + / * _ = => & # % $ @ ^ | ~ "
    '< -- .. .) ," :" ." =" +" :{ :[ :( ?> ]}, }}, }}} })) }); ]), ]); ])) )] )} )}; )]; " "" :{" },{" :[" ,{ ,['
)
CLOSINGS: Final = ('"', '"}', '",', '" }', '": "', '", "', '" :', *(f'"{behind}' for behind in _BEHIND.split(" ")))
"""What may stand at the end of a label: the closing quote, alone or with what follows it."""


class UnfitError(Exception):
    """The server's tokens do not stand for texts in a way that labels can be compared by."""


class AbsentError(UnfitError):
    """The server does not offer what it was asked for."""


class TokenServer(Protocol):
    """What a server must be able to do. All of it may raise what its client raises."""

    most_ids: int
    """The most tokens whose log-probabilities one request may ask for."""

    async def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the answer begins."""
        ...

    async def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a prompt's tokens, those that structure it included."""
        ...

    async def tokens(self, text: str) -> list[int]:
        """Return the tokens of a prompt's text."""
        ...

    async def closings(self, texts: Sequence[str]) -> list[int]:
        """Return those of some texts that are single tokens, as such, without repeats."""
        ...

    async def log_probs(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int]
    ) -> tuple[list[dict[int, float]], Usage]:
        """Return the log-probabilities of `ids` behind each prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Tree:
    """How a prompt may go on. Node 0 is where the labels part."""

    n_cut: int
    """Tokens at the prompt's end that are others where an answer follows."""
    shared: tuple[int, ...]
    """What all labels begin with, and what stands in the place of what is cut."""
    nodes: tuple[tuple[int, ...], ...]
    """The tokens that lead to each node."""
    children: tuple[tuple[int, ...], ...]
    """The tokens that may follow at each node, the closing quotes left out."""
    closes: tuple[bool, ...]
    """Whether a label may end at a node."""
    steps: tuple[tuple[tuple[int, int], ...], ...]
    """For each label, the nodes and the tokens taken there; the token is -1 for a closing quote."""

    @classmethod
    def of(cls, n_cut: int, tails: Sequence[Sequence[int]], opened: Sequence[int], quotes: frozenset[int]) -> Tree:
        """Return the tree of some continuations; what `opened` begins with too counts as the prompt's."""
        most = min(_common(tails[0], opened), *(len(tail) - 1 for tail in tails))
        n_shared = min([most, *(_common(tails[0], tail) for tail in tails)])
        rests = [tuple(tail[n_shared:]) for tail in tails]
        paths = sorted(
            {rest[:depth] for rest in rests for depth in range(len(rest))}, key=lambda path: (len(path), path)
        )
        number = {path: i for i, path in enumerate(paths)}
        ends = [-1 if rest[-1] in quotes else rest[-1] for rest in rests]
        steps = [
            tuple((number[rest[:depth]], token) for depth, token in enumerate((*rest[:-1], end)))
            for rest, end in zip(rests, ends, strict=True)
        ]
        taken: list[set[int]] = [set() for _ in paths]
        for label in steps:
            for node, token in label:
                taken[node].add(token)
        children = tuple(tuple(sorted(tokens - {-1})) for tokens in taken)
        return cls(
            n_cut, tuple(tails[0][:n_shared]), tuple(paths), children, tuple(-1 in one for one in taken), tuple(steps)
        )


class LabelScorer:
    """Scores labels at one server and model.

    Parameters
    ----------
    server : TokenServer
        The server.
    """

    def __init__(self, server: TokenServer) -> None:
        self._server = server
        self._trees: dict[tuple[tuple[int, ...], Choices], Tree] = {}
        self._closings: list[int] = []
        self._quotes: frozenset[int] = frozenset()
        self._lock = asyncio.Lock()
        self.n_requests = 0
        """Requests for log-probabilities so far."""

    async def reply(self, messages: Sequence[Message], choices: Choices, model: str) -> Reply:
        """Return the likeliest label with the log-probabilities of all, and their mass."""
        prompt = await self._server.prompt(messages)
        tree = await self._tree(prompt, choices)
        common = [*prompt[: len(prompt) - tree.n_cut], *tree.shared]
        told: list[dict[int, float]] = [{} for _ in tree.nodes]
        usage = Usage()
        for nodes, ids in self._requests(tree):
            found, used = await self._server.log_probs([[*common, *tree.nodes[node]] for node in nodes], ids)
            self.n_requests += 1
            usage = _usage_sum(usage, used)
            for node, some in zip(nodes, found, strict=True):
                told[node] |= some
        closed = [
            float(np.logaddexp.reduce([one[token] for token in self._closings])) if closes else 0.0
            for one, closes in zip(told, tree.closes, strict=True)
        ]
        scores = np.asarray(
            [sum(closed[node] if token < 0 else told[node][token] for node, token in label) for label in tree.steps]
        )
        mass = float(np.logaddexp.reduce(scores))
        best = choices.answer([choices.labels[int(scores.argmax())]])
        log_probs = tuple((scores - mass).tolist())
        return Reply(best, log_probs, usage, model=model, label_mass=min(1.0, float(np.exp(mass))))

    def _requests(self, tree: Tree) -> Iterator[tuple[list[int], list[int]]]:
        """Yield nodes, and the tokens to ask for at each of them, as few times as may be."""
        nodes: list[int] = []
        wanted: set[int] = set()
        for node, children in enumerate(tree.children):
            ids = {*children, *(self._closings if tree.closes[node] else ())}
            if nodes and (len(wanted | ids) > self._server.most_ids or len(nodes) >= _MOST_PROMPTS):
                yield from self._in_parts(nodes, wanted)
                nodes, wanted = [], set()
            nodes.append(node)
            wanted |= ids
        yield from self._in_parts(nodes, wanted)

    def _in_parts(self, nodes: list[int], wanted: set[int]) -> Iterator[tuple[list[int], list[int]]]:
        ids = sorted(wanted)
        for start in range(0, len(ids), self._server.most_ids):
            yield nodes, ids[start : start + self._server.most_ids]

    async def _tree(self, prompt: Sequence[int], choices: Choices) -> Tree:
        """Return the labels' tree behind a prompt; it is made once for all prompts that end alike."""
        key = (tuple(prompt[-_KEPT_BEFORE_END:]), choices)
        async with self._lock:
            if key not in self._trees:
                if len(self._trees) >= _KEPT_TREES:
                    self._trees.clear()
                self._trees[key] = await self._grown(prompt, choices)
            return self._trees[key]

    async def _grown(self, prompt: Sequence[int], choices: Choices) -> Tree:
        if not self._closings:
            await self._find_closings()
        text = await self._server.text(prompt)
        whole = await self._server.tokens(text)
        if list(whole) != list(prompt):
            raise UnfitError("The prompt's tokens are not those of its text.")
        answers = [choices.opening, *(choices.answer([label])[:-1] for label in choices.labels)]
        texts = [text + answer for answer in answers]
        found: list[list[int]] = []
        for start in range(0, len(texts), _AT_ONCE):
            found += await asyncio.gather(*map(self._server.tokens, texts[start : start + _AT_ONCE]))
        at = min(_common(prompt, one) for one in found)
        if len(prompt) - at > _KEPT_BEFORE_END or at == 0:
            raise UnfitError("The prompt's tokens are others where an answer follows.")
        opened, *tails = [one[at:] for one in found]
        return Tree.of(len(prompt) - at, tails, opened, self._quotes)

    async def _find_closings(self) -> None:
        found = await self._server.closings(CLOSINGS)
        quote = await self._server.closings(CLOSINGS[:1])
        if len(quote) != 1:
            raise UnfitError("A double quote is no token.")
        self._quotes = frozenset(quote)
        room = max(1, self._server.most_ids * 3 // 4)  # so that one request has room for labels too
        self._closings = list(dict.fromkeys([*quote, *found]))[:room]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _usage_sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        one.prompt_tokens + other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        one.cached_tokens + other.cached_tokens,
    )

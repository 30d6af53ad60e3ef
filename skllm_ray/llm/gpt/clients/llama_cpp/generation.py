"""Free text: greedy decoding of many sequences at once, a slot refilled as soon as its sequence ends.

Every decode takes one token of each sequence that is being written, and fills up with the prompts of those to come. A
sequence with a JSON schema has a grammar sampler of llama.cpp of its own; the likeliest token is tried first, and only
where the grammar refuses it are all tokens put before the grammar.
"""

from __future__ import annotations

import ctypes
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ConfigurationError
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.engine import Engine
from skllm_ray.llm.gpt.clients.llama_cpp.library import take_errors
from skllm_ray.llm.gpt.clients.llama_cpp.logarithms import log_sum_exp
from skllm_ray.llm.gpt.clients.llama_cpp.trie import ContextOverflowError

MAX_SLOTS = 64
"""Sequences written at once: wider decodes gain little and take memory from one another."""
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


@dataclass(frozen=True, slots=True)
class Generated:
    """What became of one prompt."""

    text: str
    n_prompt: int
    """Tokens in the prompt."""
    n_written: int
    """Tokens written, the end token not counted."""
    finish_reason: Literal["stop", "length"]
    tokens: Sequence[int] = ()
    """The tokens written."""
    log_probs: tuple[tuple[int, float], ...] | None = None
    """Where each token ends in the text, in characters, and its log probability among all tokens, where asked for."""


@dataclass(slots=True)
class _Slot:
    index: int
    tokens: list[int]
    """The prompt and what was written so far."""
    n_prompt: int
    most: int
    """The largest number of tokens to write."""
    grammar: Any = None
    sequence: int = 0
    n_decoded: int = 0
    """How many of `tokens` stand in the context."""
    stops: tuple[bytes, ...] = ()
    controls: Mapping[int, bytes] = field(default_factory=dict)
    """The texts of control tokens, where they are to be written too."""
    written: bytearray = field(default_factory=bytearray)
    log_probs: list[tuple[int, float]] | None = None
    """Where each token ends, in bytes, and its log probability, where that is to be told."""

    @property
    def n_written(self) -> int:
        return len(self.tokens) - self.n_prompt


class _Queue:
    """The sequences of one run: those that are written or read, and those that wait for a place."""

    def __init__(self, engine: Engine, waiting: deque[_Slot], free: list[int]) -> None:
        self._engine, self.waiting, self._free = engine, waiting, free
        self.active: list[_Slot] = []

    def write(self, batch: Batch) -> list[_Slot]:
        """Add the last token of each sequence that is being written; return these."""
        self._make_room()
        writing = self._writing()
        for slot in writing:
            batch.add(slot.tokens[-1:], slot.n_decoded, slot.sequence, last_wanted=True)
            slot.n_decoded += 1
        return writing

    def read(self, batch: Batch) -> list[_Slot]:
        """Give the rest of a decode to prompts, those begun first; return those that are read to their ends.

        A new one starts where it finds room to write.
        """
        engine, asked = self._engine, []
        reading = [slot for slot in self.active if slot.n_decoded < len(slot.tokens)]
        while len(batch) < engine.n_batch and (reading or self._begin(reading)):
            slot = reading.pop(0)
            room = min(engine.n_batch - len(batch), engine.room - self._n_cells())
            stop = min(len(slot.tokens), slot.n_decoded + room)
            if stop == slot.n_decoded:
                break
            whole = stop == len(slot.tokens)
            batch.add(slot.tokens[slot.n_decoded : stop], slot.n_decoded, slot.sequence, last_wanted=whole)
            slot.n_decoded = stop
            if whole:
                asked.append(slot)
        return asked

    def end(self, slot: _Slot) -> None:
        """Take a sequence out."""
        self.active.remove(slot)
        self._engine.release(slot.sequence)
        self._free.append(slot.sequence)

    def _make_room(self) -> None:
        """Where the context is full, let the youngest start again later."""
        while self._n_cells() + len(self._writing()) > self._engine.room and len(self.active) > 1:
            youngest = self.active[-1]
            self.end(youngest)
            self.waiting.appendleft(youngest)

    def _begin(self, reading: list[_Slot]) -> bool:
        """Take the next sequence up, if there is room for it."""
        if not self.waiting or not self._free:
            return False
        slot, n_prefix = self.waiting[0], self._engine.n_prefix
        margin = 32 * (len(self.active) + 1)
        if self.active and self._n_cells() + len(slot.tokens) - n_prefix + margin > self._engine.room:
            return False
        self.waiting.popleft()
        slot.sequence, slot.n_decoded = self._free.pop(), n_prefix
        self._engine.sequences.open(slot.sequence)
        self.active.append(slot)
        reading.append(slot)
        return True

    def _writing(self) -> list[_Slot]:
        return [slot for slot in self.active if len(slot.tokens) - slot.n_decoded == 1]

    def _n_cells(self) -> int:
        return sum(slot.n_decoded - self._engine.n_prefix for slot in self.active)


class Generator:
    """Writes the answers of an engine's model.

    Parameters
    ----------
    engine : Engine
        The model.
    max_slots : int, default=64
        The most sequences written at once.
    """

    def __init__(self, engine: Engine, max_slots: int = MAX_SLOTS) -> None:
        self._engine = engine
        self._lib = engine.lib
        self._max_slots = min(max_slots, engine.n_sequences - 1, engine.n_outputs)
        self._grammars: dict[str, Any] = {}
        self.n_decodes = 0
        """Calls of ``llama_decode`` that wrote at least one token."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        schemas: Sequence[Mapping[str, Any] | None],
        most_tokens: Sequence[int | None],
        stops: Sequence[Sequence[str]] | None = None,
        *,
        tells: Sequence[bool] | None = None,
        with_controls: bool = False,
    ) -> list[Generated | ContextOverflowError]:
        """Return the greedy continuation of every prompt.

        Parameters
        ----------
        prompts : sequence of token sequences, of length n_rows
            The prompts.
        schemas : sequence of mapping or None, of length n_rows
            The JSON schema that an answer must follow, where there is one.
        most_tokens : sequence of int or None, of length n_rows
            The largest number of tokens in an answer; None lets the context's end decide.
        stops : sequence of sequence of str, of length n_rows, optional
            The strings before which an answer ends.
        tells : sequence of bool, of length n_rows, optional
            Whether the log probabilities of the tokens are to be told.
        with_controls : bool, default=False
            Whether control tokens are written as the texts that they have in prompts, rather than left out.

        Returns
        -------
        list of Generated or ContextOverflowError
            One entry per prompt, in order.

        Raises
        ------
        ConfigurationError
            If llama.cpp cannot make a grammar of a schema.
        """
        engine = self._engine
        results: list[Generated | ContextOverflowError | None] = [None] * len(prompts)
        fitting = []
        for index, prompt in enumerate(prompts):
            if len(prompt) >= engine.n_ctx:
                results[index] = ContextOverflowError(len(prompt) + 1, engine.n_ctx)
            else:
                fitting.append(index)
        for run, _ in engine.runs([prompts[index] for index in fitting]):
            slots = [
                _Slot(
                    index,
                    list(prompts[index]),
                    len(prompts[index]),
                    min(most_tokens[index] or engine.n_ctx, engine.n_ctx - len(prompts[index])),
                    self._grammar(schemas[index]),
                    stops=tuple(stop.encode("utf-8", "replace") for stop in stops[index]) if stops else (),
                    controls=engine.marked_pieces if with_controls else {},
                    log_probs=[] if tells and tells[index] else None,
                )
                for index in (fitting[i] for i in run)
            ]
            try:
                self._write(deque(slots), results)
            finally:
                for slot in slots:
                    self._free(slot)
                engine.release()
        return results  # type: ignore[return-value]

    def close(self) -> None:
        """Free the grammars."""
        for grammar in self._grammars.values():
            self._lib.llama_sampler_free(grammar)
        self._grammars.clear()

    # --- inside ---------------------------------------------------------------------------------------------------

    def _write(self, waiting: deque[_Slot], results: list[Generated | ContextOverflowError | None]) -> None:
        """Work through the queue of one run, whose shared prefix stands in all sequences."""
        queue = _Queue(self._engine, waiting, list(range(self._max_slots, 0, -1)))
        while queue.waiting or queue.active:
            batch = self._engine.new_batch()
            asked = [*queue.write(batch), *queue.read(batch)]
            logits = self._engine.decode(batch)
            self.n_decodes += bool(asked)
            for row, slot in zip(logits, asked, strict=True):
                reason = self._step(slot, row)
                if reason:
                    text, tokens = slot.written.decode("utf-8", "replace"), slot.tokens[slot.n_prompt :]
                    told = _by_characters(slot.log_probs, slot.written)
                    results[slot.index] = Generated(text, slot.n_prompt, slot.n_written, reason, tokens, told)
                    queue.end(slot)
                    self._free(slot)

    def _step(self, slot: _Slot, logits: NDArray[np.float32]) -> Literal["", "stop", "length"]:
        """Choose the next token of a sequence; return why it ends, if it does."""
        if slot.n_written >= slot.most:
            return "length"
        token = self._choose(slot.grammar, logits)
        if self._engine.is_end(token):
            return "stop"
        if slot.grammar is not None:
            self._lib.llama_sampler_accept(slot.grammar, token)
        slot.tokens.append(token)
        piece = slot.controls.get(token) or self._engine.pieces[token]
        slot.written += piece
        if slot.log_probs is not None:
            slot.log_probs.append((len(slot.written), float(logits[token] - log_sum_exp(logits[None])[0])))
        if slot.stops and _ends_at_stop(slot.written, len(piece), slot.stops):
            return "stop"
        return "length" if slot.n_written >= slot.most else ""

    def _choose(self, grammar: Any, logits: NDArray[np.float32]) -> int:
        best = int(logits.argmax())
        if grammar is None or self._allowed(grammar, np.asarray([best], np.int32), logits).size:
            return best
        allowed = self._allowed(grammar, np.arange(len(logits), dtype=np.int32), logits)
        return int(allowed[logits[allowed].argmax()]) if allowed.size else best

    def _allowed(self, grammar: Any, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return those of `tokens` that the grammar lets follow."""
        candidates = np.zeros(len(tokens), _CANDIDATE)
        candidates["id"], candidates["logit"] = tokens, logits[tokens]
        array = self._lib.llama_token_data_array()
        array.data = ctypes.cast(candidates.ctypes.data, self._lib.llama_token_data_p)
        array.size, array.selected, array.sorted = len(tokens), -1, False
        self._lib.llama_sampler_apply(grammar, ctypes.byref(array))
        return np.asarray(candidates["id"][np.isfinite(candidates["logit"])], np.int32)

    def _grammar(self, schema: Mapping[str, Any] | None) -> Any:
        """Return a fresh grammar sampler for `schema`; it is parsed once."""
        if schema is None:
            return None
        text = json.dumps(schema)
        if text not in self._grammars:
            from llama_cpp.llama_grammar import json_schema_to_gbnf

            try:
                source = json_schema_to_gbnf(text)
            except Exception as error:  # noqa: BLE001 - it raises what the schema makes it stumble over
                raise ConfigurationError(f"llama.cpp makes no grammar of this JSON schema: {error!r}") from None
            take_errors()
            sampler = self._lib.llama_sampler_init_grammar(self._engine.vocab, source.encode(), b"root")
            if not sampler:
                raise ConfigurationError(f"llama.cpp refuses the grammar of this JSON schema: {take_errors()}")
            self._grammars[text] = sampler
        return self._lib.llama_sampler_clone(self._grammars[text])

    def _free(self, slot: _Slot) -> None:
        if slot.grammar is not None:
            self._lib.llama_sampler_free(slot.grammar)
            slot.grammar = None


def _by_characters(
    log_probs: Sequence[tuple[int, float]] | None, written: bytearray
) -> tuple[tuple[int, float], ...] | None:
    """Return where tokens end in characters rather than in bytes."""
    if log_probs is None:
        return None
    begun = np.cumsum([0, *((byte & 0xC0) != 0x80 for byte in written)])  # a character counts where it begins
    return tuple((int(begun[min(end, len(written))]), log_prob) for end, log_prob in log_probs)


def _ends_at_stop(written: bytearray, n_new: int, stops: Sequence[bytes]) -> bool:
    """Return whether the last `n_new` bytes complete a stop string; what stands from it on is taken off."""
    found = [written.find(stop, max(0, len(written) - n_new - len(stop) + 1)) for stop in stops]
    first = min((at for at in found if at >= 0), default=-1)
    if first >= 0:
        del written[first:]
    return first >= 0

"""One llama.cpp context that works on many sequences at once.

Scoring
-------
A classification is scored, not generated. The prompt, the answer's opening, a label and its closing quote are tokenised
as one string (a label alone would tokenise differently), the tokens that all labels share are decoded once, and the
rest forms a trie: a token that several labels share belongs to all their sequences and is decoded once as well. A
label's score is the sum of the log-probabilities of its tokens; at its end any token that begins with the closing quote
counts, because a model may go on with ``"}`` as well as with ``"``.

The beginning that all rows of a call share (instructions, labels, examples) stays in sequence 0 from call to call and
is copied, as a reference, into the rows' sequences.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.library import import_llama_cpp, load_model, set_verbose, take_errors

MAX_SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ
_LOGITS_BYTES = 1 << 27  # the output buffer: n_outputs × n_vocab floats


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is loaded."""

    path: str
    n_ctx: int | None = None
    """Tokens that the KV cache holds, over all sequences; None takes the training context, 8,192 at most."""
    n_gpu_layers: int = 0
    """0: all layers on the CPU, -1: all on the GPU, n > 0: n layers on the GPU."""
    n_threads: int = 1
    n_batch: int = 512
    """Tokens in one ``llama_decode``."""
    verbose: bool = False


class ContextOverflowError(Exception):
    """A row needs more tokens than the context holds."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(n_tokens, n_ctx)
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


@dataclass(slots=True)
class _Node:
    """A token of a batch: where it stands, which sequences it belongs to, whether its logits are wanted."""

    token: int
    position: int
    sequences: Sequence[int]
    wanted: bool = False


@dataclass(slots=True)
class _Row:
    """One row's tokens: what all its continuations share, and each continuation's rest."""

    index: int
    common: list[int]
    tails: list[list[int]]

    @property
    def n_outputs(self) -> int:
        return 1 + sum(len(tail) - 1 for tail in self.tails)

    def n_tokens(self, n_prefix: int) -> int:
        return len(self.common) - n_prefix + sum(len(tail) - 1 for tail in self.tails)


class Engine:
    """A loaded GGUF model and its context.

    Parameters
    ----------
    options : EngineOptions
        The file and how to load it.

    Raises
    ------
    ModelLoadError
        If the file is not a model that llama.cpp can load, or GPU layers are asked of a build without GPU support.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._lib = import_llama_cpp()
        self.options = options
        set_verbose(options.verbose)
        self._model = self._load_model()
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))
        trained = int(self._lib.llama_model_n_ctx_train(self._model))
        self.n_ctx = min(options.n_ctx or min(trained, 8192), trained)
        self._n_outputs = max(32, min(MAX_SEQUENCES, _LOGITS_BYTES // (4 * self.n_vocab)))
        self._widest = min(MAX_SEQUENCES, self._n_outputs) - 1
        self._context = self._open_context()
        self._n_batch = min(options.n_batch, int(self._lib.llama_n_batch(self._context)))
        self._memory = self._lib.llama_get_memory(self._context)
        self._batch = self._lib.llama_batch_init(self._n_batch, 0, MAX_SEQUENCES)
        self._prefix: list[int] = []
        self._quoted: NDArray[np.bool_] | None = None
        self.n_decoded = 0
        """Tokens decoded so far."""
        self.n_reused = 0
        """Prompt tokens that were not decoded, because they stood in the shared prefix."""

    # --- loading --------------------------------------------------------------------------------------------------

    def _load_model(self) -> Any:
        lib, options = self._lib, self.options
        if options.n_gpu_layers != 0 and not lib.llama_supports_gpu_offload():
            raise ModelLoadError(
                f"gguf_max_gpu_layers={options.n_gpu_layers}, but this llama-cpp-python was built without GPU support.",
                "Install a CUDA or Metal build, or call SKLLMConfig.set_gguf_max_gpu_layers(0).",
            )
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        return load_model(lib, options.path, params)

    def _open_context(self) -> Any:
        lib, options = self._lib, self.options
        params = lib.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = min(options.n_batch, self.n_ctx)
        params.n_ubatch = min(512, params.n_batch)
        params.n_seq_max = MAX_SEQUENCES
        params.n_outputs_max = self._n_outputs
        params.n_outputs_max_per_seq = self._n_outputs
        params.n_threads = params.n_threads_batch = max(1, options.n_threads)
        params.kv_unified = True
        params.no_perf = True
        take_errors()
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            lib.llama_model_free(self._model)
            raise ModelLoadError(
                f"llama.cpp cannot open a context of {self.n_ctx} tokens for {options.path}: {take_errors()}",
                "The memory for the KV cache may be missing.",
            )
        return context

    def metadata(self, key: str) -> str | None:
        """Return a metadata value of the file, or None."""
        size = 1 << 12
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace") if length >= 0 else None
            size = length + 1

    def close(self) -> None:
        """Free the context and the model. Calling it again does nothing."""
        if self._model is None:
            return
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
        self._model = self._context = None

    # --- tokens ---------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of `text`, control tokens recognised if `special`, none added."""
        encoded = text.encode("utf-8", "replace")
        size = len(encoded) + 8
        tokens = (self._lib.llama_token * size)()
        count = self._lib.llama_tokenize(self._vocab, encoded, len(encoded), tokens, size, False, special)
        if count < 0:
            raise ValueError(f"llama.cpp could not tokenise a text of {len(encoded)} bytes.")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, or None if the model has none."""
        if not self._lib.llama_vocab_get_add_bos(self._vocab):
            return None
        token = int(self._lib.llama_vocab_bos(self._vocab))
        return token if token >= 0 else None

    def special_text(self, name: str) -> str:
        """Return the text of the special token `name` (``bos`` or ``eos``), or an empty string."""
        token = int(getattr(self._lib, f"llama_vocab_{name}")(self._vocab))
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def control_texts(self) -> list[str]:
        """Return the texts that llama.cpp would read as control tokens, longest first."""
        is_control = self._lib.llama_vocab_is_control
        texts = {
            self.piece(token, special=True).decode("utf-8", "replace")
            for token in range(self.n_vocab)
            if is_control(self._vocab, token)
        }
        return sorted((text for text in texts if len(text) > 1), key=len, reverse=True)

    def _begins_with_quote(self) -> NDArray[np.bool_]:
        if self._quoted is None:
            pieces = (self.piece(token) for token in range(self.n_vocab))
            self._quoted = np.fromiter((piece.startswith(b'"') for piece in pieces), bool, self.n_vocab)
        return self._quoted

    # --- scoring --------------------------------------------------------------------------------------------------

    def score(
        self, prompts: Sequence[Sequence[int]], tails: Sequence[Sequence[Sequence[int]]]
    ) -> list[NDArray[np.float64] | ContextOverflowError]:
        """Return the log-probability of every continuation of every prompt.

        Parameters
        ----------
        prompts : sequence of token sequences, of length n_rows
            What comes before.
        tails : sequence of sequences of token sequences, of length n_rows
            Each row's continuations, at least two different ones, none the beginning of another.

        Returns
        -------
        list of ndarray of shape (n_continuations,), or ContextOverflowError
            One entry per row, in order; not normalised.
        """
        results: list[NDArray[np.float64] | ContextOverflowError | None] = [None] * len(prompts)
        rows = []
        for index, (prompt, row_tails) in enumerate(zip(prompts, tails, strict=True)):
            row = _split(index, list(prompt), [list(tail) for tail in row_tails])
            needed = len(row.common) + max(self._n_branch_tokens(row))
            if needed > self.n_ctx:
                results[index] = ContextOverflowError(needed, self.n_ctx)
            else:
                rows.append(row)
                results[index] = np.zeros(len(row_tails))
        n_prefix = self._share_prefix(rows)
        for group in self._groups(rows, n_prefix):
            self._score_group(group, n_prefix, results)
        return results  # type: ignore[return-value]

    def _n_branch_tokens(self, row: _Row) -> list[int]:
        """Return, for each part of the row's continuations, how many tokens they take at most."""
        return [sum(len(row.tails[i]) - 1 for i in part) for part in _chunks(row, self._widest)]

    def _share_prefix(self, rows: Sequence[_Row]) -> int:
        """Put what all rows begin with into sequence 0; return its length."""
        if not rows:
            return 0
        shared = _common_length([row.common[:-1] for row in rows])
        kept = _common_length([self._prefix, rows[0].common[:shared]])
        if len(rows) == 1 or shared == kept:
            self.n_reused += kept * len(rows)
            return kept
        prefix = rows[0].common[:shared]
        if not self._lib.llama_memory_seq_rm(self._memory, 0, kept, -1):
            self._lib.llama_memory_clear(self._memory, False)
            kept = 0
        self._prefix = []
        self._decode([_Node(token, position, (0,)) for position, token in enumerate(prefix)][kept:])
        self._prefix = prefix
        self.n_reused += shared * (len(rows) - 1)
        return shared

    def _groups(self, rows: Sequence[_Row], n_prefix: int) -> Iterator[list[tuple[_Row, range]]]:
        """Yield sets of rows, with the continuations of each, that fit into the context and its sequences at once."""
        group: list[tuple[_Row, range]] = []
        cells = sequences = outputs = 0
        room = self.n_ctx - len(self._prefix)
        for row in rows:
            for chosen in _chunks(row, self._widest):
                part = _Row(row.index, row.common, [row.tails[i] for i in chosen])
                need = part.n_tokens(n_prefix), len(chosen), part.n_outputs
                full = (
                    cells + need[0] > min(room, self._n_batch)
                    or sequences + need[1] > MAX_SEQUENCES - 1
                    or outputs + need[2] > self._n_outputs
                )
                if group and full:
                    yield group
                    group, cells, sequences, outputs = [], 0, 0, 0
                if need[0] > room:  # a long row needs the room that the prefix of other rows takes
                    self._forget()
                    n_prefix, room = 0, self.n_ctx
                    need = part.n_tokens(0), need[1], need[2]
                group.append((row, chosen))
                cells, sequences, outputs = cells + need[0], sequences + need[1], outputs + need[2]
        if group:
            yield group

    def _score_group(
        self,
        group: Sequence[tuple[_Row, range]],
        n_prefix: int,
        results: list[NDArray[np.float64] | ContextOverflowError | None],
    ) -> None:
        n_prefix = min(n_prefix, len(self._prefix))
        nodes: list[_Node] = []
        walks: list[tuple[_Row, int, list[tuple[int, int]]]] = []  # row, continuation, its (output, token) pairs
        n_outputs = next_sequence = 0
        for row, chosen in group:
            sequences = range(next_sequence + 1, next_sequence + 1 + len(chosen))
            next_sequence += len(chosen)
            for position, token in enumerate(row.common[n_prefix:], n_prefix):
                nodes.append(_Node(token, position, sequences))
            nodes[-1].wanted = True
            outputs: dict[tuple[int, ...], int] = {(): n_outputs}
            n_outputs += 1
            members: dict[tuple[int, ...], list[int]] = {}
            for sequence, i in zip(sequences, chosen, strict=True):
                for depth in range(1, len(row.tails[i])):
                    members.setdefault(tuple(row.tails[i][:depth]), []).append(sequence)
            for path, shared_by in sorted(members.items(), key=lambda item: len(item[0])):
                nodes.append(_Node(path[-1], len(row.common) + len(path) - 1, shared_by, wanted=True))
                outputs[path] = n_outputs
                n_outputs += 1
            for i in chosen:
                tail = row.tails[i]
                walks.append((row, i, [(outputs[tuple(tail[:d])], token) for d, token in enumerate(tail)]))
        for sequence in range(1, next_sequence + 1 if n_prefix else 1):
            self._lib.llama_memory_seq_cp(self._memory, 0, sequence, 0, n_prefix)
        logits = self._decode(nodes)
        for sequence in range(1, next_sequence + 1):
            self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        log_totals = _log_sum_exp(logits)
        for row, i, walk in walks:
            score = sum(float(logits[at, token]) - log_totals[at] for at, token in walk[:-1])
            score += self._end_score(logits[walk[-1][0]], walk[-1][1]) - log_totals[walk[-1][0]]
            results[row.index][i] = score  # type: ignore[index]

    def _end_score(self, logits: NDArray[np.float32], token: int) -> float:
        if self.piece(token) != b'"':
            return float(logits[token])
        quoted = self._begins_with_quote()
        return float(_log_sum_exp(logits[None, quoted])[0])

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)
        self._prefix = []

    # --- decoding -------------------------------------------------------------------------------------------------

    def _decode(self, nodes: Sequence[_Node]) -> NDArray[np.float32]:
        """Decode `nodes`; return the logits of the wanted ones, of shape (n_wanted, n_vocab)."""
        wanted: list[NDArray[np.float32]] = []
        for start in range(0, len(nodes), self._n_batch):
            part = nodes[start : start + self._n_batch]
            batch = self._batch
            batch.n_tokens = len(part)
            for i, node in enumerate(part):
                batch.token[i] = node.token
                batch.pos[i] = node.position
                batch.n_seq_id[i] = len(node.sequences)
                row = batch.seq_id[i]
                for j, sequence in enumerate(node.sequences):
                    row[j] = sequence
                batch.logits[i] = node.wanted
            take_errors()
            code = self._lib.llama_decode(self._context, batch)
            if code != 0:
                self._forget()
                raise RuntimeError(f"llama_decode failed with code {code}: {take_errors()}")
            self.n_decoded += len(part)
            for i, node in enumerate(part):
                if node.wanted:
                    pointer = self._lib.llama_get_logits_ith(self._context, i)
                    wanted.append(np.ctypeslib.as_array(pointer, (self.n_vocab,)).copy())
        return np.stack(wanted) if wanted else np.empty((0, self.n_vocab), np.float32)


def _split(index: int, prompt: list[int], tails: list[list[int]]) -> _Row:
    """Move what all continuations begin with into the common part; every rest keeps at least one token."""
    shared = min(_common_length(tails), min(map(len, tails)) - 1)
    if not prompt and not shared:
        raise ValueError("A row needs at least one token before its continuations differ.")
    return _Row(index, prompt + tails[0][:shared], [tail[shared:] for tail in tails])


def _common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all `sequences` begin with."""
    low, high = min(map(tuple, sequences)), max(map(tuple, sequences))
    for length, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return length
    return min(len(low), len(high))


def _chunks(row: _Row, widest: int) -> Iterator[range]:
    """Yield ranges of the row's continuations that one decode can hold: by sequences and by wanted outputs."""
    start, outputs = 0, 1
    for i, tail in enumerate(row.tails):
        need = len(tail) - 1
        if i > start and (i - start >= widest or outputs + need > widest):
            yield range(start, i)
            start, outputs = i, 1
        outputs += need
    yield range(start, len(row.tails))


def _log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    highest = logits.max(axis=1, keepdims=True)
    return np.asarray(highest[:, 0] + np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64)), np.float64)

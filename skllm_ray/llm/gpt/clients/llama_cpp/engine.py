"""A loaded model and one llama.cpp context of many sequences: tokens in, logits out, a prefix shared by all.

The beginning that rows share (instructions, labels, examples) is decoded once, into all sequences at the same time, and
stays there from call to call. What is done with the sequences is told in :mod:`.scoring` and :mod:`.generation`.
"""

from __future__ import annotations

import ctypes
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.fitness import facts_of, refusal
from skllm_ray.llm.gpt.clients.llama_cpp.library import (
    context_length,
    import_llama_cpp,
    is_embedding_model,
    load_model,
    metadata,
    most_outputs,
    set_verbose,
    take_errors,
)
from skllm_ray.llm.gpt.clients.llama_cpp.memory import is_recurrent, memory_needed, recurrent_memory
from skllm_ray.llm.gpt.clients.llama_cpp.sequences import N_MARKS, TOGETHER, Sequences, SharedTokens, StateCopies

_WORTH_A_RUN = 256  # tokens that a shorter prefix must cost before rows part into two runs
_LONGEST = 1 << 31
_EVEN = 16
_CPU_BATCH = 256  # a token looks at all cells of its batch: on a CPU, wider decodes cost more than they save
_GPU_BATCH = 2048
_ACROSS = re.compile(rb"\S ")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a model is loaded."""

    path: str
    n_ctx: int | None = None
    """Tokens that the KV cache holds, over all sequences; None takes the training context, 8,192 at most."""
    n_gpu_layers: int = 0
    """0: all layers on the CPU, -1: all on the GPU, n > 0: n layers on the GPU."""
    n_threads: int = 1
    n_batch: int | None = None
    """Tokens in one ``llama_decode``; None takes 256 on a CPU, and 2,048 where layers are on a GPU."""
    verbose: bool = False
    vocab_only: bool = False
    """Whether the tokenizer alone is loaded."""


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
        self.lib = import_llama_cpp()
        self.options = options
        set_verbose(options.verbose)
        self.model = self._load_model()
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.n_vocab = int(self.lib.llama_vocab_n_tokens(self.vocab))
        trained = int(self.lib.llama_model_n_ctx_train(self.model))
        self.n_ctx = context_length(trained, options.n_ctx)
        self.n_outputs = most_outputs(self.n_vocab)
        """Logits that one ``llama_decode`` keeps at most."""
        self.n_sequences = self.n_outputs
        """Sequences for the shared prefix and for rows. llama.cpp aborts where all are more than the outputs."""
        self.is_embedding_model = is_embedding_model(self.lib, self.model)
        """Whether the model makes vectors and answers no prompts."""
        self.n_batch = min(options.n_batch or (_CPU_BATCH if options.n_gpu_layers == 0 else _GPU_BATCH), self.n_ctx)
        tokenizes_only = options.vocab_only or self.is_embedding_model
        self._context = None if tokenizes_only else self._open_context()
        if self._context and not self.lib.llama_get_memory(self._context):  # an encoder: it keeps nothing of a text
            self.lib.llama_free(self._context)
            self._context, self.is_embedding_model = None, True
        self.sequences = self._sequences()
        self._batch = Batch()
        self._prefix: list[int] = []
        self._before: list[int] = []
        self._under_way: Decoding | None = None
        self.n_decoded = 0
        """Tokens decoded so far, those that only fill not counted."""
        self.n_reused = 0
        """Prompt tokens that were not decoded, because they stood in the shared prefix."""

    # --- loading --------------------------------------------------------------------------------------------------

    def _load_model(self) -> Any:
        lib, options = self.lib, self.options
        if options.n_gpu_layers != 0 and not lib.llama_supports_gpu_offload():
            raise ModelLoadError(
                f"gguf_max_gpu_layers={options.n_gpu_layers}, but this llama-cpp-python was built without GPU support.",
                "Install a CUDA or Metal build, or call SKLLMConfig.set_gguf_max_gpu_layers(0).",
            )
        params = lib.llama_model_default_params()
        params.n_gpu_layers = options.n_gpu_layers
        params.vocab_only = options.vocab_only
        model = load_model(lib, options.path, params)
        reason = refusal(options.path, facts_of(lib, model))
        if reason is not None:
            lib.llama_model_free(model)
            raise reason
        return model

    def _open_context(self) -> Any:
        lib, options = self.lib, self.options
        n_states = 0
        if is_recurrent(lib, self.model):
            n_states = self._n_states()
            self.n_sequences = n_states - N_MARKS
        params = lib.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = self.n_batch
        params.n_ubatch = self.n_batch  # a GPU takes whole what is laid out for it
        params.n_seq_max = n_states or self.n_sequences
        params.n_outputs_max = self.n_outputs
        params.n_outputs_max_per_seq = self.n_outputs
        params.n_threads = params.n_threads_batch = max(1, options.n_threads)
        params.kv_unified = True
        if options.n_gpu_layers == 0:
            # On a CPU, flash attention computes in 16-bit floats or in 32, depending on how long a decode is, and
            # differs from what llama-cpp-python computes by default. Without it a row alone gives its logits exactly.
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        take_errors()
        context = lib.llama_init_from_model(self.model, params)
        if not context:
            lib.llama_model_free(self.model)
            raise ModelLoadError(
                f"llama.cpp cannot open a context of {self.n_ctx} tokens for {options.path}: {take_errors()}",
                f"It takes {memory_needed(options.path, self.n_ctx)}: that memory may be missing.",
            )
        return context

    def _n_states(self) -> int:
        try:
            return recurrent_memory(self.lib, self.options.path, self.n_ctx, self.n_sequences).n_states
        except ModelLoadError:
            self.lib.llama_model_free(self.model)
            raise

    def _sequences(self) -> Sequences:
        memory = self.lib.llama_get_memory(self._context) if self._context else None
        if not is_recurrent(self.lib, self.model):
            return SharedTokens(self.lib, memory, self.n_sequences)
        return StateCopies(self.lib, memory, self.n_sequences, self.metadata("general.architecture") in TOGETHER)

    def metadata(self, key: str) -> str | None:
        """Return a metadata value of the file, or None."""
        return metadata(self.lib, self.model, key)

    def close(self) -> None:
        """Free the context and the model. Calling it again does nothing."""
        if self.model is None:
            return
        if self._context is not None:
            self.lib.llama_free(self._context)
        self.lib.llama_model_free(self.model)
        self.model = self._context = None

    # --- tokens ---------------------------------------------------------------------------------------------------

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a rendered prompt: control tokens recognised, none added."""
        return self._tokenize(text, add_special=False, parse_special=True)

    def tokenize_text(self, text: str) -> list[int]:
        """Return the tokens of a bare text: no control token is read from it, the model's own are added."""
        return self._tokenize(text, add_special=True, parse_special=False)

    def _tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        encoded = text.encode("utf-8", "replace")
        size = len(encoded) + 8
        tokens = (self.lib.llama_token * size)()
        count = self.lib.llama_tokenize(self.vocab, encoded, len(encoded), tokens, size, add_special, parse_special)
        if count < 0:
            raise ValueError(f"llama.cpp could not tokenise a text of {len(encoded)} bytes.")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return the bytes that `token` stands for."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self.lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    @property
    def bos(self) -> int | None:
        """The token that begins every prompt, or None if the model has none."""
        return self.bos_token if self.lib.llama_vocab_get_add_bos(self.vocab) else None

    def special_text(self, name: str) -> str:
        """Return the text of the special token `name` (``bos`` or ``eos``), or an empty string."""
        token = int(getattr(self.lib, f"llama_vocab_{name}")(self.vocab))
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos_token(self) -> int | None:
        """The model's token of a beginning, whether or not its tokenizer puts it there by itself."""
        token = int(self.lib.llama_vocab_bos(self.vocab))
        return token if token >= 0 else None

    def special_texts(self) -> tuple[list[str], list[str]]:
        """Return the texts that llama.cpp reads as tokens of their own: control tokens, and user-defined ones."""
        lib, vocab = self.lib, self.vocab
        hidden = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        found: tuple[list[str], list[str]] = ([], [])
        for token in range(self.n_vocab):
            kind = int(lib.llama_vocab_get_attr(vocab, token))
            if kind & (hidden | lib.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = self.piece(token, special=True).decode("utf-8", "replace")
                found[0 if kind & hidden else 1].append(text)
        return found

    @cached_property
    def marked_pieces(self) -> dict[int, bytes]:
        """The texts of the control tokens, which have none in `pieces`, and of those that users defined."""
        lib, vocab = self.lib, self.vocab
        marked = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        return {
            token: self.piece(token, special=True)
            for token in range(self.n_vocab)
            if lib.llama_vocab_get_attr(vocab, token) & marked
        }

    @cached_property
    def quoted_tokens(self) -> NDArray[np.int64]:
        """The tokens whose text begins with a double quote."""
        return np.asarray([token for token, piece in enumerate(self.pieces) if piece.startswith(b'"')], np.int64)

    @cached_property
    def quotes(self) -> NDArray[np.int64]:
        """The tokens whose text is a double quote and nothing else."""
        return np.asarray([token for token, piece in enumerate(self.pieces) if piece == b'"'], np.int64)

    @cached_property
    def parts_at_spaces(self) -> bool:
        """Whether no token reaches from the end of a word over the space behind it."""
        return not any(_ACROSS.search(piece) for piece in self.pieces)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Each token's bytes."""
        return [self.piece(token) for token in range(self.n_vocab)]

    def is_end(self, token: int) -> bool:
        """Return whether `token` ends a generation."""
        return bool(self.lib.llama_vocab_is_eog(self.vocab, token))

    # --- the shared prefix ----------------------------------------------------------------------------------------

    def runs(self, rows: Sequence[list[int]], step: int = 1) -> Iterator[tuple[list[int], int]]:
        """Partition rows into runs that share much, and put each run's shared beginning into all sequences.

        Parameters
        ----------
        rows : sequence of token sequences
            Each row's tokens; the last one is never shared, because its logits will be asked for.
        step : int, default=1
            What the lengths of the shared beginnings are to be multiples of.

        Yields
        ------
        indices : list of int
            The rows of the run.
        n_prefix : int
            How many of their first tokens stand in all sequences now.
        """
        order = sorted(range(len(rows)), key=lambda index: rows[index])
        shared = [common_length(rows[a], rows[b]) for a, b in itertools.pairwise(order)]
        start = 0
        while start < len(order):
            stop, length = start + 1, min(len(rows[order[start]]) - 1, *shared[start : start + 1], _LONGEST)
            # A run ends where the next row would cost it much of its prefix, or shares much more with those after it.
            while stop < len(order):
                shorter = min(length, shared[stop - 1], len(rows[order[stop]]) - 1)
                lost, ahead = (length - shorter) * (stop - start), max(shared[stop : stop + 1], default=0) - shorter
                if lost > _WORTH_A_RUN or ahead > _WORTH_A_RUN // 4:
                    break
                length, stop = shorter, stop + 1
            run = order[start:stop]
            if len(run) == 1:
                row = rows[run[0]]
                length = common_length(row[:-1], self._before) if self._before else 0
                length = max(length, common_length(row[:-1], self._prefix))
                self._before = list(row)
            ahead = shared[stop - 1] if stop < len(order) else 0
            yield run, self._share(rows[run[0]][: length - length % step], len(run), ahead, step)
            start = stop

    def _share(self, prefix: Sequence[int], n_rows: int, ahead: int, step: int) -> int:
        kept = common_length(prefix, self._prefix)
        if kept < len(self._prefix):
            kept = self.sequences.cut(kept)
            self._prefix = self._prefix[:kept]
        self.n_reused += kept + len(prefix) * (n_rows - 1)
        for stop in self.sequences.stops(kept, len(prefix), ahead) if kept < len(prefix) else ():
            batch = self.new_batch()
            batch.add(prefix[kept:stop], kept, 0, self.sequences.n_holders)
            n_missing = -len(batch) % step if self.sequences.shares_tokens else 0
            if n_missing:
                batch.fill(n_missing, stop)
            self._prefix, kept = list(prefix[:stop]), stop
            self.start(batch)
            if n_missing:
                self.sequences.release(0, stop)
            self.sequences.mark(stop)
        return len(prefix)

    @property
    def overlaps(self) -> bool:
        """Whether decoding goes on while this process does something else: on a GPU."""
        return self.options.n_gpu_layers != 0

    @property
    def n_prefix(self) -> int:
        """Tokens of the shared prefix."""
        return len(self._prefix)

    @property
    def room(self) -> int:
        """Tokens that fit into the context besides the shared prefix."""
        return self.n_ctx - len(self._prefix)

    def release(self, sequence: int = -1) -> None:
        """Remove what stands behind the shared prefix in one sequence, or, with -1, in all."""
        self.sequences.release(sequence, len(self._prefix))

    def trim(self, length: int) -> None:
        """Remove everything from position `length` on from all sequences but what belongs to the prefix."""
        self.sequences.release(-1, max(length, len(self._prefix)))

    def forget(self) -> None:
        """Empty all sequences, the shared prefix included."""
        self.sequences.clear()
        self._prefix, self._under_way = [], None

    # --- decoding -------------------------------------------------------------------------------------------------

    def new_batch(self) -> Batch:
        """Return this engine's batch, empty."""
        self._batch.clear()
        return self._batch

    def fill_up(self, batch: Batch, step: int) -> None:
        """Fill `batch` up, behind a row, to the next multiple of `step`, where another row may begin."""
        n_missing = -len(batch) % step
        if n_missing:
            batch.fill(n_missing, len(self._prefix))

    def decode(self, batch: Batch) -> NDArray[np.float32]:
        """Decode a batch of any length, with any number of wanted tokens.

        Returns
        -------
        ndarray of shape (n_wanted, n_vocab)
            The logits of the wanted tokens, in their order; valid until the next call.
        """
        return self.start(batch).logits()

    def start(self, batch: Batch) -> Decoding:
        """Begin to decode a batch as :meth:`decode` does. A CPU has ended it on return, a GPU goes on with it."""
        decoding = Decoding(self._view)
        for start, stop, n_wanted in self._parts(batch):
            if self._under_way is not None:  # its logits are in the buffer that this decode writes to
                self._under_way.take()
            take_errors()
            code = self.lib.llama_decode(self._context, batch.part(self.lib, start, stop))
            if code != 0:
                self.forget()
                raise RuntimeError(f"llama_decode failed with code {code}: {take_errors()}")
            self.n_decoded += stop - start
            decoding.n_in_buffer, self._under_way = n_wanted, decoding
        self.n_decoded -= batch.n_filled
        return decoding

    def _view(self, n_wanted: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(self.lib.llama_get_logits(self._context), (n_wanted, self.n_vocab))

    def _parts(self, batch: Batch) -> Iterator[tuple[int, int, int]]:
        """Yield starts, stops and wanted tokens of equal parts that one ``llama_decode`` can take each."""
        size = -(-len(batch) // max(1, -(-len(batch) // self.n_batch)))
        size = min(self.n_batch, size + -size % _EVEN)  # the last part alone may be odd
        so_far = np.concatenate([[0], np.cumsum(batch.wanted[: len(batch)], dtype=np.int64)])
        start = 0
        for end in (len(batch),) if self.sequences.decode_together else batch.ends():
            while start < end:
                # The logits of one decode have a buffer of limited size: a label may have more tokens than it holds.
                room = int(np.searchsorted(so_far, so_far[start] + self.n_outputs, side="right")) - 1
                stop = min(start + size, end, room)
                yield start, stop, int(so_far[stop] - so_far[start])
                start = stop


class Decoding:
    """The logits of a batch, of which the last may still be on their way from a GPU.

    Parameters
    ----------
    view : callable
        Waits for a decode, and returns so many of its logits in llama.cpp's own buffer.
    """

    def __init__(self, view: Callable[[int], NDArray[np.float32]]) -> None:
        self._view = view
        self._taken: list[NDArray[np.float32]] = []
        self.n_in_buffer = 0
        """Rows of logits in llama.cpp's buffer, which the next decode overwrites."""

    def take(self) -> None:
        """Copy what is in llama.cpp's buffer."""
        if self.n_in_buffer:
            self._taken.append(self._view(self.n_in_buffer).copy())
            self.n_in_buffer = 0

    def logits(self) -> NDArray[np.float32]:
        """Return the logits of the wanted tokens, of shape (n_wanted, n_vocab), once; valid until the next decode."""
        if self.n_in_buffer and not self._taken:
            n_wanted, self.n_in_buffer = self.n_in_buffer, 0
            return self._view(n_wanted)
        self.take()
        if len(self._taken) == 1:
            return self._taken[0]
        return np.concatenate(self._taken) if self._taken else np.empty((0, 0), np.float32)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Return how many tokens, or characters, two sequences both begin with."""
    most = min(len(one), len(other))
    if one[:most] == other[:most]:
        return most
    low, high = 0, most  # one[:low] == other[:low], one[:high] != other[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low

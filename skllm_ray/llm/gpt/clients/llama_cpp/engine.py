"""A loaded model and one llama.cpp context of many sequences: tokens in, logits out, a prefix shared by all.

The beginning that rows share (instructions, labels, examples) is decoded once, into all sequences at the same time, and
stays there from call to call. What is done with the sequences is told in :mod:`.scoring` and :mod:`.generation`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.batch import Batch
from skllm_ray.llm.gpt.clients.llama_cpp.decoding import Decoding, common_length
from skllm_ray.llm.gpt.clients.llama_cpp.fitness import facts_of, refusal
from skllm_ray.llm.gpt.clients.llama_cpp.kernels import NOTICE, lays_out_weights
from skllm_ray.llm.gpt.clients.llama_cpp.library import (
    context_length,
    import_llama_cpp,
    is_embedding_model,
    load_model,
    most_outputs,
    set_verbose,
    take_errors,
)
from skllm_ray.llm.gpt.clients.llama_cpp.memory_estimate import is_recurrent, memory_needed, recurrent_memory
from skllm_ray.llm.gpt.clients.llama_cpp.sequences import N_MARKS, TOGETHER, Sequences, SharedTokens, StateCopies
from skllm_ray.llm.gpt.clients.llama_cpp.vocabulary import Vocabulary

_WORTH_A_RUN = 256  # tokens that a shorter prefix must cost before rows part into two runs
_LONGEST = 1 << 31
_EVEN = 16
_CPU_BATCH = 256  # a token looks at all cells of its batch: on a CPU, wider decodes cost more than they save
_GPU_BATCH = 2048


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


class Engine(Vocabulary):
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
        lib = import_llama_cpp()
        self.options = options
        set_verbose(options.verbose)
        super().__init__(lib, _load_model(lib, options))
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

    @property
    def notices(self) -> list[str]:
        """What users should know of the library that computes."""
        return [] if lays_out_weights(self.lib) else [NOTICE]

    # --- loading --------------------------------------------------------------------------------------------------

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

    def close(self) -> None:
        """Free the context and the model. Calling it again does nothing."""
        if self.model is None:
            return
        if self._context is not None:
            self.lib.llama_free(self._context)
        self.lib.llama_model_free(self.model)
        self.model = self._context = None

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
                batch.fill(n_missing, stop, 0)
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

    def filled_up(self, batch: Batch, step: int) -> Batch:
        """Fill `batch` up, at its end, to a multiple of `step`, with tokens that nobody looks at; return it."""
        n_missing = -len(batch) % step
        if n_missing:
            batch.fill(n_missing, len(self._prefix), 0)
        return batch

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


def _load_model(lib: ModuleType, options: EngineOptions) -> Any:
    if options.n_gpu_layers != 0 and not lib.llama_supports_gpu_offload():
        raise ModelLoadError(
            f"gguf_max_gpu_layers={options.n_gpu_layers}, but this llama-cpp-python was built without GPU support.",
            "Install a CUDA or Metal build, or call SKLLMConfig.set_gguf_max_gpu_layers(0).",
        )
    params = lib.llama_model_default_params()
    params.n_gpu_layers = options.n_gpu_layers
    params.vocab_only = options.vocab_only
    params.use_extra_bufts = options.vocab_only or lays_out_weights(lib)
    model = load_model(lib, options.path, params)
    reason = refusal(options.path, facts_of(lib, model))
    if reason is not None:
        lib.llama_model_free(model)
        raise reason
    return model

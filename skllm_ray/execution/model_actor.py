"""The Ray actor that holds a loaded model."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from skllm_ray.config import Secret, SecretRef
from skllm_ray.execution.weights import ASIDE, Files
from skllm_ray.execution.worker_feedback import with_warnings
from skllm_ray.llm.base import Backend, StatefulSpec
from skllm_ray.tasks.base import ChatRequest, Choices

if TYPE_CHECKING:
    from skllm_ray.execution.last_words import Place


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """Where one replica of a model lives."""

    pid: int
    node: str
    """The node's address."""
    load_s: float
    """Seconds from the start of loading to the model being ready."""
    threads: int
    memory_mb: float
    """Resident memory of the process, in MB, the file's shared pages included."""
    gpus: str = ""
    """``CUDA_VISIBLE_DEVICES`` of the process: empty where it sees no GPU."""
    fetch_s: float = 0.0
    """Seconds of the loading in which the model's files came to the node."""


_ADMISSION_S: Final = 30.0
_MOST_THREADS: Final = 8
_PROBE: Final = ChatRequest(({"role": "user", "content": "Yes or no?"},), Choices(("yes", "no")))


class ModelActor:
    """Holds one model for as long as the pool wants it. It is asked by blocks, which take turns.

    Who must know what an actor dies of asks in two steps: `admit` waits for a turn and keeps it, and then nothing but
    `call_admitted` runs, until it returns.
    """

    ASIDE: ClassVar[str] = ASIDE
    """The concurrency group of methods that must not wait behind calls."""

    def __init__(self, hide_gpus: bool, keep_alive_s: float | None = None) -> None:
        if hide_gpus:  # Ray leaves GPUs visible to actors that asked for none; llama.cpp would take them
            os.environ.update(CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
        os.environ["GGML_NO_BACKTRACE"] = "1"  # it would start a debugger, for a minute, before the process may die
        self._backend: Backend | None = None
        self._files: Files | None = None
        self._fetch_s = self._load_s = 0.0
        self._threads = 0
        self._idle = IdleExit(keep_alive_s)
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._numbers = itertools.count(1)
        self._admitted = 0

    def ping(self) -> int:
        """Return this process's ID: the actor has been placed."""
        return os.getpid()

    def place(self) -> Place:
        """Return where this process lives, and where its last words will be."""
        from skllm_ray.execution.last_words import place_of_this_process

        return place_of_this_process()

    def load(self, spec: StatefulSpec, threads: int, probes: bool = False, source: Any = None) -> ReplicaInfo:
        """Load the model; raises ``ModelLoadError`` as ``spec.open`` does.

        `threads` is what a replica may use; 0 takes all CPUs of this node, eight at most. With `probes` it answers a
        trivial request first, for what that may do to this process. `source` is another node's actor, which has the
        model's files or is about to.
        """
        started = time.perf_counter()
        self._idle.touch()
        threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
        if spec.files is not None:
            self._files = Files(*spec.files)
            self._fetch_s = self._files.fetch(source).seconds
        self._backend = spec.for_replica(threads).open(_no_secrets)
        self._threads = threads
        self._load_s = time.perf_counter() - started
        if probes:
            self._probe(self._backend)
        return self.info()

    def state(self, file: str) -> tuple[int, str] | str:
        """Return how a file of the model stands here, for another node's actor that copies it."""
        return "coming" if self._files is None else self._files.state(file)

    def piece(self, file: str, start: int) -> bytes:
        """Return some bytes of such a file."""
        return b"" if self._files is None else self._files.piece(file, start)

    def calls(self) -> int:
        """Return how many calls it works at, or has waiting."""
        return self._idle.n_busy

    def _probe(self, backend: Backend) -> None:
        (reply,) = backend.complete([_PROBE])
        if reply.error is not None and reply.error.kind == "not_supported":
            backend.embed([_PROBE.messages[0]["content"]])

    def transfer(self) -> Any:
        """Return the download that `load` is at, if it is at one; answers while `load` works."""
        from skllm_ray.llm.gpt.clients.llama_cpp.download import current_transfer

        return current_transfer()

    def call(self, verb: str, items: Sequence[Any]) -> list[Any]:
        """Return the backend's answers: `verb` is ``"complete"`` or ``"embed"``."""
        with self._idle.busy(), self._turn:
            return self._answer(verb, items)

    def admit(self) -> int:
        """Wait for a turn and keep it for whoever asked; return the number to call with.

        A caller that does not come, because it has died, loses the turn after a while.
        """
        with self._idle.busy():
            self._turn.acquire()
        number = self._admitted = next(self._numbers)
        timer = threading.Timer(_ADMISSION_S, self._expire, (number,))
        timer.daemon = True
        timer.start()
        return number

    def call_admitted(self, number: int, verb: str, items: Sequence[Any]) -> list[Any] | None:
        """Return the backend's answers to the caller that was admitted; None if it came too late."""
        if not self._use(number):
            return None
        try:
            with self._idle.busy():
                return self._answer(verb, items)
        finally:
            self._turn.release()

    def _use(self, number: int) -> bool:
        """Return whether the turn is that of `number`, which nobody else can use from here on."""
        with self._state:
            is_its_turn = self._admitted == number
            self._admitted = 0 if is_its_turn else self._admitted
            return is_its_turn

    def _expire(self, number: int) -> None:
        if self._use(number):
            self._turn.release()

    def _answer(self, verb: str, items: Sequence[Any]) -> list[Any]:
        if self._backend is None:
            raise RuntimeError("The model is not loaded.")
        verbs: dict[str, Callable[[Any], list[Any]]] = {
            "complete": self._backend.complete,
            "embed": self._backend.embed,
        }
        return with_warnings(lambda: verbs[verb](items))

    def info(self) -> ReplicaInfo:
        """Return where this replica lives and what it takes."""
        import ray

        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        return ReplicaInfo(
            os.getpid(),
            ray.util.get_node_ip_address(),
            self._load_s,
            self._threads,
            _resident_mb(),
            gpus,
            self._fetch_s,
        )


def _no_secrets(reference: SecretRef) -> Secret:
    raise RuntimeError(f"A local model asked for the credential {reference}.")


def _resident_mb() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 1e6


class IdleExit:
    """Ends an actor that outlives its driver when nobody has used it for a while.

    Parameters
    ----------
    seconds : float or None
        How long it may be idle; None never ends it.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._last = time.monotonic()
        self._busy = 0
        self._lock = threading.Lock()
        if seconds is not None:
            threading.Thread(target=self._watch, daemon=True).start()

    @property
    def n_busy(self) -> int:
        """How many are busy now."""
        return self._busy

    def touch(self) -> None:
        """Begin to count anew."""
        self._last = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count as busy meanwhile."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
            self.touch()

    def _watch(self) -> None:
        import ray

        seconds = self._seconds or 0.0
        while self._busy or time.monotonic() - self._last < seconds:
            time.sleep(max(0.05, min(seconds / 4, 5.0)))
        ray.kill(ray.get_runtime_context().current_actor)

"""Unknown files are tried in a process of their own, so that a file at which llama.cpp dies costs an error.

llama.cpp ends its process where an assertion fails, or where a file's numbers lead it astray. In a notebook that would
be the notebook. So before a file is loaded here for the first time, a child process loads it and decodes a few tokens.
It maps the weights and does not copy them: it takes little memory, and what it reads from the disk stands in the
system's cache when the file is loaded here. Besides reading it takes about half a second, once for every state of a
file (path, size, time of change) and version of llama.cpp, which a note in the user's cache folder remembers.

That the file cannot kill is not proven by this: the child decodes with another context, on the CPU. What kills a model
actor later is told by the actor's own last words (see :mod:`skllm_ray.execution.last_words`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from skllm_ray.errors import ModelLoadError
from skllm_ray.llm.gpt.clients.llama_cpp.fitness import refusal
from skllm_ray.llm.gpt.clients.llama_cpp.library import load_hint
from skllm_ray.llm.gpt.clients.llama_cpp.words import death_hint, last_words, sentence

SCRIPT: Final = Path(__file__).with_name("trial_process.py")
_UNLOADABLE: Final = "cannot be loaded"
_MOST_NOTES: Final = 1000
_KEPT_CHARACTERS: Final = 20_000  # of what the child wrote
_passed: set[str] = set()
_lock = threading.Lock()
_logger = logging.getLogger(__name__)


def try_out(parts: Sequence[Path]) -> None:
    """Raise ``ModelLoadError`` if a model's file is of no use here, or llama.cpp dies of it.

    Parameters
    ----------
    parts : sequence of Path
        The model's file; of a split model all of them, the first one first.
    """
    identity = _identity(parts)
    with _lock:
        if identity in _passed:
            return
    note = notes() / identity
    if not note.exists():
        _try(str(parts[0]))
        with contextlib.suppress(OSError):  # it will be tried again
            note.parent.mkdir(parents=True, exist_ok=True)
            if len(others := list(note.parent.iterdir())) >= _MOST_NOTES:
                for other in others:
                    other.unlink(missing_ok=True)
            note.touch()
    with _lock:
        _passed.add(identity)


def _identity(parts: Sequence[Path]) -> str:
    states = [(str(part.resolve()), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    version = importlib.metadata.version("llama-cpp-python")
    return hashlib.sha256(repr((states, version)).encode()).hexdigest()


def notes() -> Path:
    """Return the folder of notes on what was tried."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "skllm-ray" / "tried"


def child_environment() -> dict[str, str]:
    """Return the environment of a child that sees no GPU and finds the modules of this process."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "GGML_NO_BACKTRACE": "1"}
    return {**os.environ, **hidden, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _try(path: str) -> None:
    if not sys.executable:  # an embedded interpreter: there is nothing to start
        return
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-P", str(SCRIPT), path]
        child = subprocess.Popen(  # noqa: S603 - this very Python, a script of ours, and a file's name
            command, stdout=subprocess.PIPE, stderr=errors, env=child_environment(), text=True
        )
        with child:
            try:
                wrong = _watch(path, child.stdout)
            finally:
                child.kill()
        if wrong == "":
            return
        said = _tail(errors)
    if wrong is None and "Traceback (most recent call last)" in said:  # the script's own fault, not the file's
        _logger.warning("%s could not be tried: %s", path, said.splitlines()[-1])
        return
    words = last_words(said)
    if wrong == _UNLOADABLE:
        raise ModelLoadError(
            f"llama.cpp cannot load {path}: {sentence(words or 'it gave no reason')}", load_hint(words)
        )
    if wrong is not None:
        raise ModelLoadError(f"{path} {wrong}. {sentence(words)}".rstrip(), load_hint(words))
    ending = _ending(child.returncode)
    raise ModelLoadError(
        f"llama.cpp dies of {path}: {words or 'it leaves no words'} ({ending}).",
        f"It was tried in a process of its own. {death_hint(f'{words} {ending}')}",
    )


def _watch(path: str, lines: IO[str] | None) -> str | None:
    """Return what the child says is wrong; None if it ends without a word. Raise if the file is of no use."""
    for line in lines or ():
        said: Mapping[str, Any] = json.loads(line)
        if "wrong" in said:
            return str(said["wrong"])
        reason = refusal(path, said["facts"])
        if reason is not None:
            raise reason
    return None


def _tail(file: IO[bytes]) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - _KEPT_CHARACTERS))
    return file.read().decode("utf-8", "replace")


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, for want of memory" if name == "SIGKILL" else name

"""A model's files on many nodes: the hub is asked once, and the others copy from one another.

::

    node 1    downloads from the hub
    node 2    waits for node 1, then copies from it, in pieces, through Ray's object store
    node 3    copies from node 1 as well, node 4 from node 2, and so on: a tree
    a file system that nodes share is seen by the file being there once one of them has it

A copy goes on where it was broken off, is checked against the SHA-256 of the node that it comes from (or the one that
is pinned), and where no node can give it, the hub is asked after all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skllm_ray.llm.gpt.clients.llama_cpp.catalog import sha256
from skllm_ray.llm.gpt.clients.llama_cpp.download import file_if_here, here, local_file

ASIDE: Final = "aside"
"""The concurrency group in which files are given while others are taken."""
PIECE_BYTES: Final = 8 << 20
_AHEAD: Final = 4  # pieces asked for at once
_POLL_S: Final = 0.5
_SILENT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """How a model's files came to a node."""

    node: str
    """The node's address."""
    path: str
    seconds: float
    source: str
    """"here" (they were there, or on a file system that the nodes share), "a node" or "the hub"."""


class Files:
    """Gives and takes a model's files; lives in an actor of each node.

    Parameters
    ----------
    name : str
        What follows ``gguf::``.
    download_path : str
        The folder for what is downloaded.
    """

    def __init__(self, name: str, download_path: str) -> None:
        self._name = name
        self._folder = download_path
        self._failed = self._has_all = False
        self._digests: dict[str, str] = {}

    def state(self, file: str) -> tuple[int, str] | str:
        """Return the size and the SHA-256 of a file that is here; else "coming", or "failed"."""
        found = here(file, self._folder)
        if found is None and self._has_all:  # a hub that tells no hash
            return self._measured(Path(self._folder, file), file)
        return found or ("failed" if self._failed else "coming")

    def _measured(self, path: Path, file: str) -> tuple[int, str]:
        if file not in self._digests:
            self._digests[file] = sha256(path)
        return path.stat().st_size, self._digests[file]

    def piece(self, file: str, start: int) -> bytes:
        """Return some bytes of a file."""
        with Path(self._folder, file).open("rb") as opened:
            opened.seek(start)
            return opened.read(PIECE_BYTES)

    def fetch(self, source: Any = None) -> Fetched:
        """Bring the files here: from `source`, another node's actor of this class, or from the hub."""
        began = time.monotonic()
        was_here = file_if_here(self._name, self._folder) is not None
        copied: list[str] = []

        def copy(file: str, to: Path) -> str | None:
            found = None if source is None else _copy(source, file, to, lambda: here(file, self._folder))
            copied.append("the hub" if found is None else "a node" if to.exists() else "here")
            return found

        try:
            path = local_file(self._name, self._folder, copy)
        except BaseException:
            self._failed = True
            raise
        self._has_all = True
        how = "here" if was_here else next((one for one in ("the hub", "a node", "here") if one in copied), "the hub")
        return Fetched(ray.util.get_node_ip_address(), str(path), time.monotonic() - began, how)


def _copy(source: Any, file: str, to: Path, look: Callable[[], tuple[int, str] | None]) -> str | None:
    """Copy a file from another node, once it has it; return its SHA-256, or None where that cannot be."""
    try:
        while not isinstance(state := ray.get(_ask(source.state, file), timeout=_SILENT_S), tuple):
            if state == "failed":
                return None
            if (found := look()) is not None:  # the nodes share a file system
                return found[1]
            time.sleep(_POLL_S)
        size, digest = state
        if (found := look()) is not None:
            return found[1]
        with to.open("ab") as part:
            part.truncate(part.tell() // PIECE_BYTES * PIECE_BYTES)
            starts = range(part.tell(), size, PIECE_BYTES)
            asked = [_ask(source.piece, file, start) for start in starts[:_AHEAD]]
            for start in starts[_AHEAD:]:
                part.write(ray.get(asked.pop(0), timeout=_SILENT_S))
                asked.append(_ask(source.piece, file, start))
            for piece in asked:
                part.write(ray.get(piece, timeout=_SILENT_S))
    except RayError:  # that node is gone, or too slow
        return None
    return str(digest)


def _ask(method: Any, *args: Any) -> Any:
    return method.options(concurrency_group=ASIDE).remote(*args)


def warm_nodes(
    name: str,
    download_path: str,
    tell: Callable[[Fetched], None] | None = None,
    folder_of: Callable[[str], str] | None = None,
) -> list[Fetched]:
    """Bring a model's files to all nodes of the cluster that this process has joined; return how they came.

    Parameters
    ----------
    name : str
        What follows ``gguf::``.
    download_path : str
        The folder for what is downloaded, on every node.
    tell : callable or None, default=None
        Called with each node that has them.
    folder_of : callable or None, default=None
        Returns the folder on a node, by its ID, where it is not the same on all.

    Raises
    ------
    ModelLoadError
        If they cannot be had.
    """
    own = ray.get_runtime_context().get_node_id()
    nodes = sorted((node["NodeID"] for node in ray.nodes() if node["Alive"]), key=lambda node: node != own)
    in_groups: Any = ray.remote  # its types know no groups
    actor_class = in_groups(concurrency_groups={ASIDE: 4})(Files)
    actors, waiting = list[Any](), dict[Any, int]()
    for number, node in enumerate(nodes):
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        folder = download_path if folder_of is None else folder_of(node)
        actors.append(actor_class.options(num_cpus=0, scheduling_strategy=strategy).remote(name, folder))
        waiting[actors[number].fetch.remote(source_of(actors, number))] = number
    return _told(waiting, tell)


def source_of(actors: Sequence[Any], number: int) -> Any:
    """Return from which of the earlier actors the one of a number copies; None for the first.

    Examples
    --------
    >>> [source_of("abcdefg", number) for number in range(7)]
    [None, 'a', 'a', 'b', 'b', 'c', 'c']
    """
    return actors[(number - 1) // 2] if number else None


def _told(waiting: dict[Any, int], tell: Callable[[Fetched], None] | None) -> list[Fetched]:
    found: dict[int, Fetched] = {}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        for reference in done:
            number = waiting.pop(reference)
            found[number] = ray.get(reference)
            if tell is not None:
                tell(found[number])
    return [found[number] for number in sorted(found)]

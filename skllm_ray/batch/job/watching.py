"""Who goes on with a job's batches while no driver runs: a watcher in the cluster, which does what the driver did.

One of them works at a time, the one that holds the output's lock. A watcher tries to take the lock now and then; it
gets it when the driver has died, or has ended before the job. A driver that comes back asks the watcher to make room,
and takes the lock as after any other run. So all that holds of a driver's death holds of a watcher's, too.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from skllm_ray.batch.delivery.batch_records import is_cancelled
from skllm_ray.batch.job.driver import Outcome
from skllm_ray.batch.job.interruption import GRACE_S, ending_when
from skllm_ray.batch.job.locked_run import PASSES, LockedRun
from skllm_ray.batch.output.fence import LOCK_FILE
from skllm_ray.batch.output.holder import Holder
from skllm_ray.batch.output.lock import OutputLock
from skllm_ray.batch.storage import Folder, open_folder
from skllm_ray.config import Secret
from skllm_ray.errors import (
    AmbiguousSubmission,
    ClusterError,
    ConfigurationError,
    InputError,
    NotSupportedError,
    OutputInUseError,
    OutputMismatchError,
    warn,
)
from skllm_ray.execution import ray_state, session
from skllm_ray.execution.tuning_watcher import Polling
from skllm_ray.execution.watcher import (
    Watcher,
    answering,
    as_pieces,
    end_watcher,
    from_pieces,
    named_watchers,
    node_of_driver,
    start_watcher,
    stood_back,
    wake_watcher,
)

PAUSES: Final = Polling(first_s=10.0, longest_s=300.0)
"""Between two tries of a watcher to go on with the job."""
_ROOM_S: Final = 60.0
"""How long a watcher leaves the output to a driver that wants it."""
_WAKE_S: Final = 60.0
_DIES_S: Final = 10.0  # how long the process of a watcher that was ended by force may live on
_TICK_S: Final = 0.2
_MOST_IN_VAIN: Final = 20
_PREFIX: Final = ray_state.shared_name("batch-watcher", LockedRun)
_FOR_A_PERSON: Final = (
    AmbiguousSubmission,
    ConfigurationError,
    InputError,
    NotSupportedError,
    OutputMismatchError,
)
_log = logging.getLogger(__name__)


class BatchWatcher(Watcher):
    """Goes on with a job whenever nobody else holds its output, until it is done or needs a person.

    Parameters
    ----------
    name : str
        The watcher's own.
    *pieces : bytes
        The job's `LockedRun`.
    """

    def __init__(self, name: str, *pieces: bytes) -> None:
        self._name = name
        self._run_of_job: LockedRun = from_pieces(pieces)
        self._working = threading.Lock()
        self._room_until = 0.0
        self._asked_at = float("-inf")
        self._in_vain = 0
        super().__init__()

    def stand_back(self) -> None:
        """Leave the output to a driver for a minute: return once this watcher does not hold it."""
        self._room_until = time.monotonic() + _ROOM_S
        with self._working:
            pass

    def _look(self) -> float | None:
        with self._working:
            left_s = self._room_until - time.monotonic()
            if left_s > 0:
                return left_s
            try:
                with ending_when(self._is_to_end):
                    outcome = self._run_of_job.again(self._secrets)
            except OutputInUseError:  # a driver is at it
                return PAUSES.first_s
            except _FOR_A_PERSON as error:
                _log.warning("the watcher of %s ends: %s", self._name, type(error).__name__)
                return None
            except Exception as error:  # noqa: BLE001  storage or the cluster is out of order, in whatever way
                _log.warning("the watcher of %s tries again after %s", self._name, type(error).__name__)
                outcome = Outcome("crashed")
            self._in_vain = 0 if outcome.progress.asked else self._in_vain + 1
            if outcome.kind not in PASSES or self._in_vain >= _MOST_IN_VAIN:
                return None
            return PAUSES.pause_s(self._in_vain)

    def _is_to_end(self) -> bool:
        now = time.monotonic()
        if now < self._room_until:
            return True
        if now - self._asked_at < PAUSES.first_s:
            return False
        self._asked_at = now
        work = self._run_of_job.work
        with suppress(OSError):
            return is_cancelled(open_folder(work.output_uri, work.options, self._secrets))
        return False

    def _end(self) -> None:
        for actor in named_watchers(self._name).values():
            end_watcher(actor)


class Keeper:
    """Keeps a watcher ready while a driver runs: called before the first batch is ordered, and now and then.

    There is none in local mode, nor in a Ray that ends with this process.

    Parameters
    ----------
    run : LockedRun
        What the watcher does.
    output : Folder
        The output.
    secrets : mapping of str to Secret
        Credentials by fingerprint.
    token : str
        Names this run.
    """

    def __init__(self, run: LockedRun, output: Folder, secrets: Mapping[str, Secret], token: str) -> None:
        self._run = run
        self._output = output
        self._secrets = secrets
        self._token = token
        self._actor: Any = None
        self._due = 0.0

    def __call__(self) -> None:
        """See to it that the watcher is there, and has its credentials, which it loses where its process dies."""
        if time.monotonic() < self._due or ray_state.is_local_mode():
            return
        self._due = time.monotonic() + _WAKE_S
        session.ensure()
        if ray_state.ends_with_this_process():
            return
        try:
            with answering("the batches", ""):
                if self._actor is None:
                    self._start()
                else:
                    wake_watcher(self._actor, self._secrets, timeout_s=None)
        except ClusterError as error:
            warn(
                f"{error.message} If this command ends, they go on at the provider, and the same command takes them up."
            )

    def leave(self, outcome: Outcome) -> None:
        """Leave the job to the watcher where it can go on, which `outcome` then tells; end all others."""
        if ray_state.is_local_mode() or not ray_state.is_initialised():
            return
        stays = self._name if outcome.kind in PASSES and self._actor is not None else ""
        if stays:
            outcome.stopped += (
                "; the cluster's watcher goes on with the job, until `skllm-ray batches cancel "
                f"{self._output.path}` ends that"
            )
        self._end_all_but(stays)

    def _start(self) -> None:
        pieces = as_pieces(self._run)
        actor = start_watcher(BatchWatcher, self._name, self._name, *pieces, is_local=self._output.is_local)
        wake_watcher(actor, self._secrets)
        self._actor = actor
        self._end_all_but(self._name)  # those of earlier runs: this one's terms hold now

    @property
    def _name(self) -> str:
        return f"{_prefix(self._output)}{self._token[:8]}"

    def _end_all_but(self, stays: str) -> None:
        for name, actor in named_watchers(_prefix(self._output)).items():
            if name != stays:
                end_watcher(actor)


@contextmanager
def locked(system: Folder, output: Folder) -> Iterator[OutputLock]:
    """Give the output's lock; a watcher of this cluster that holds it makes room.

    Raises
    ------
    OutputInUseError
        If another run holds it.
    """
    deadline = None
    with ExitStack() as stack:
        while True:
            try:
                lock = stack.enter_context(OutputLock(system))
                break
            except OutputInUseError:
                if not _is_held_by_watcher(system) or (deadline is not None and time.monotonic() > deadline):
                    raise
                if deadline is None and not _make_room(output):
                    raise
                deadline = deadline or time.monotonic() + _DIES_S
            time.sleep(_TICK_S)
        yield lock


def _is_held_by_watcher(system: Folder) -> bool:
    return Holder.parse(system.read_if_there(LOCK_FILE)).watches


def _make_room(output: Folder) -> bool:
    """Let the watchers of an output stand back, those that do not by force; return whether there were any."""
    if ray_state.is_local_mode():
        return False
    session.ensure()
    found = named_watchers(_prefix(output))
    for actor in found.values():
        if not stood_back(actor, GRACE_S):
            end_watcher(actor)
    return bool(found)


def _prefix(output: Folder) -> str:
    """Return how the names of an output's watchers begin."""
    where = node_of_driver() if output.is_local else output.filesystem.type_name
    return f"{_PREFIX}-{hashlib.sha256(f'{where} {output.path}'.encode()).hexdigest()[:16]}-"

"""Starting Ray, joining it, leaving it."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ClusterError, ConfigurationError
from skllm_ray.execution import parent_process
from skllm_ray.execution.progress import slow
from skllm_ray.execution.ray_state import NAMESPACE, _initialised, _state, in_ray_worker, is_started_here, started_here
from skllm_ray.llm.open_models import Freed, ModelCache

_CONNECT_TIMEOUT_S = 5.0
_SETTINGS = 4
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])

_lock = threading.RLock()


def init(address: str | None = None, *, local_mode: bool = False, **ray_init_kwargs: Any) -> None:
    """Start Ray on this machine, or join a running cluster. Optional: the first call that needs Ray does it.

    Parameters
    ----------
    address : str or None, default=None
        A cluster's address, such as ``"auto"`` or ``"10.0.0.1:6379"``. None honours ``RAY_ADDRESS``, then joins a
        cluster that runs on this machine, then starts one. ``ray://`` addresses are refused: submit a job instead.
    local_mode : bool, default=False
        Run everything in this process, without Ray: for debuggers, unit tests and notebooks.
    **ray_init_kwargs
        Passed on to ``ray.init``.

    Raises
    ------
    ConfigurationError
        If `local_mode` comes with an address or with options of Ray, or `address` is a ``ray://`` one.
    ClusterError
        If Ray is initialised already and `address` was given, or the cluster cannot be joined.

    Examples
    --------
    >>> import skllm_ray
    >>> skllm_ray.init(local_mode=True)
    >>> skllm_ray.shutdown()
    """
    if local_mode:
        if address is not None or ray_init_kwargs:
            given = ["address"] * (address is not None) + list(ray_init_kwargs)
            raise ConfigurationError(f"local_mode=True starts no Ray, so {', '.join(given)} cannot be passed.")
        _state["local_mode"] = True
        return
    _refuse_client(address)
    with _lock:
        _state["local_mode"] = False
        if not _initialised():
            _start(address, ray_init_kwargs)
        elif address is None and not ray_init_kwargs:
            _announce()
        else:
            raise ClusterError(
                "Ray is initialised in this process already, so init() cannot take an address or options.",
                "Call ray.shutdown() first, or call init() without arguments to use the running Ray.",
            )


def shutdown() -> None:
    """Unload this job's models, leave local mode, and stop Ray if this library started or joined it."""
    with _lock:
        _state["local_mode"] = False
        ModelCache._clear(shared=False)
        if is_started_here():
            import ray

            ray.shutdown()
        parent_process.withdraw()


def _clear_shared() -> list[Freed]:
    """Unload the models that outlive jobs, of the cluster that this process is connected to."""
    if not _initialised():
        return []
    from skllm_ray.execution.model_pool import clear_shared

    return clear_shared()


ModelCache.also_clears(_clear_shared)


def ensure() -> None:
    """Start or join Ray if this process has not; refuse where it cannot work.

    Raises
    ------
    ClusterError
        After a fork of a process that used Ray, in a ``ray://`` client, or when Ray cannot start.
    """
    with _lock:
        if _state["forked"]:
            raise ClusterError(
                "This process was forked from one that uses Ray, and Ray does not survive a fork.",
                'Start child processes with the "spawn" method, or call predict in the parent.',
            )
        if not _initialised():
            _start(None, {})
            return
        _announce()
    from ray.util.client import ray as client

    if client.is_connected():
        raise ClusterError(_CLIENT, _CLIENT_HINT)


_CLIENT = "Ray is connected through a ray:// client, which skllm_ray does not support."
_CLIENT_HINT = "Run the script on the cluster: ray job submit --address http://HEAD:8265 -- python script.py"


def _refuse_client(address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        raise ConfigurationError(f"address={address!r}: {_CLIENT}", _CLIENT_HINT)


def _start(address: str | None, options: dict[str, Any]) -> None:
    """Call ``ray.init`` with our quiet defaults under the caller's options."""
    address = _checked(address)
    starts = address == "local" or (not address and not _last_cluster())
    variables = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with _environment(variables), _quiet_authentication():
        import ray

        if _has_port(address):
            _use_token_if_needed(address)
        quiet = {
            "namespace": NAMESPACE,
            "include_dashboard": False,
            "logging_level": logging.WARNING,
            "log_to_driver": SKLLMConfig.get_gguf_verbose(),
        }
        where = f"joining Ray at {address}" if _has_port(address) else "starting Ray on this machine"
        try:
            with slow(where):
                ray.init(address=address or None, **{**quiet, **options})
        except Exception as error:  # of no special kind where Ray's own processes do not start in time
            raise ClusterError(
                f"Ray could not be started or joined at {address or 'this machine'}: {type(error).__name__}: {error}",
                "Check the address with `ray status --address ADDRESS`, or unset RAY_ADDRESS to start a local Ray. "
                "On a busy machine, call again.",
            ) from error
    started_here(fixed_size=address in {"", "local"}, own=starts)
    _announce()


def _checked(address: str | None) -> str:
    """Return where Ray is to be joined, once it answers there; ``"local"`` where one is to be started.

    Ray itself tries for minutes to join a cluster that is gone, and then ends the whole process.
    """
    said = os.environ.get("RAY_ADDRESS") or ""
    given = said if address == "auto" and _has_port(said) else address or said
    _refuse_client(given)
    inherited = parent_process.parent()
    if not given and inherited and not _fault_at(inherited[0]):
        return inherited[0]
    if not given:  # what Ray would join by itself, unless it is gone
        return "local" if _fault_at(_last_cluster()) else ""
    found = _running_cluster() if given == "auto" else given
    fault = _fault_at(found)
    if fault:
        at = found if found == given else f"{found}, where the last cluster of this machine was"
        at += ", which RAY_ADDRESS names" if given == said and address != given else ""
        raise ClusterError(
            f"Ray could not be joined at {at}: {fault}.",
            "Check the address, and that `ray status --address ADDRESS` answers; without one, a local Ray is started.",
        )
    return found


def _running_cluster() -> str:
    """Return the address of the cluster that runs on this machine."""
    with suppress(ImportError):
        from ray._private.services import find_gcs_addresses

        running = sorted(find_gcs_addresses())
        last = _last_cluster()
        if last in running or not running:
            running = [last] if last else []
        if not running:
            raise ClusterError(
                "No Ray cluster runs on this machine.", "Pass its address, set RAY_ADDRESS, or call `ray start --head`."
            )
        if len(running) == 1:
            return str(running[0])
    return "auto"


def _announce() -> None:
    """Let the children of this process join its Ray, and find its credentials there."""
    if in_ray_worker() or parent_process.parent() is not None:
        return
    import ray
    from ray.util.client import ray as client

    from skllm_ray.execution.shared_secrets import share
    from skllm_ray.llm.credentials import secrets_of

    if client.is_connected():
        return
    share(secrets_of(None))
    context = ray.get_runtime_context()
    parent_process.announce(str(context.gcs_address), str(context.get_job_id()))


def _last_cluster() -> str:
    """Return the address of the cluster that was last started on this machine, which ``ray.init`` would join."""
    try:
        from ray._private.utils import read_ray_address
    except ImportError:
        return ""
    return read_ray_address() or ""


def _has_port(address: str) -> bool:
    return address.rpartition(":")[2].isdigit()  # neither "auto" nor "local"


def _fault_at(address: str) -> str:
    """Return why no Ray answers at `address`; nothing where one does, or where no port is named."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return ""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in {"", "0"}:
                return ""
            connection.settimeout(_CONNECT_TIMEOUT_S)
            connection.sendall(_GREETING)
            answer = connection.recv(9)
    except TimeoutError:
        return f"no answer within {_CONNECT_TIMEOUT_S:g} s"
    except (OSError, OverflowError, UnicodeError) as error:
        return str(error)
    is_settings = len(answer) > 3 and answer[3] == _SETTINGS  # the first frame of every HTTP/2 server, and so of gRPC
    return "" if is_settings else "what listens there is no Ray"


def _use_token_if_needed(address: str) -> None:
    """Use this user's token where the cluster asks for one: Ray does so only for clusters that it finds by itself.

    A token sent to a cluster without authentication does harm: the cluster then cannot call back and takes the driver
    for dead. So the cluster is asked first.
    """
    try:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
        from ray._raylet import GcsClient  # type: ignore[attr-defined]
        from ray.exceptions import AuthenticationError, RayError
    except ImportError:  # a Ray without token authentication
        return
    try:
        GcsClient(address=address).internal_kv_get(b"skllm_ray")
    except AuthenticationError:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    except RayError:  # whatever it is, ray.init will say it better
        return


@contextmanager
def _quiet_authentication() -> Iterator[None]:
    """Hide Ray's notices about tokens, which concern whoever runs a cluster and not each of its users."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for Ray's own processes, and take them back."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)

"""Credentials for other processes: children, such as joblib's, and tasks of the user's own find them in the job's Ray.

They are handed over where an estimator is fitted or cloned, and where this process starts or joins Ray: never while
something is pickled, which must neither wait for a cluster nor fail with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from skllm_ray.config import Secret
from skllm_ray.errors import ClusterError
from skllm_ray.execution import ray_state

_logger = logging.getLogger(__name__)
_lock = threading.Lock()
_fitted: dict[str, Secret] = {}
"""The credentials of this process's estimators, by fingerprint, for a Ray that is started later."""


def share(secrets: Mapping[str, Secret]) -> None:
    """Put `secrets` where children and tasks of this process find them, now if it uses Ray, else once it does.

    A Ray that cannot take them is no reason not to fit an estimator: who needs a key then says which is missing.
    """
    with _lock:
        _fitted.update(secrets)
        known = dict(_fitted)
    if known and ray_state.is_initialised() and not ray_state.is_local_mode() and not ray_state.in_ray_worker():
        from ray.exceptions import RayError

        from skllm_ray.execution.secrets import hand_over, known_here

        try:
            if not known.keys() <= known_here().keys():
                hand_over(known)
        except (ClusterError, RayError) as error:
            _logger.warning("Child processes cannot be given this process's key (%s).", type(error).__name__)

"""Settings of GGUF models."""

from __future__ import annotations

import os
from pathlib import Path

from skllm_ray.config.checks import _at_least, _flag, _gpu_layers, _number
from skllm_ray.config.process_state import current, read, write, write_for
from skllm_ray.config.secret import _text
from skllm_ray.config.values import GGUFResources
from skllm_ray.errors import ConfigurationError


class GGUFSettings:
    """The part of `SKLLMConfig` that is about GGUF models: their files, GPU layers and actors."""

    @staticmethod
    def set_gguf_download_path(path: str | os.PathLike[str]) -> None:
        """Set the directory for downloaded GGUF files, on every node; default ``~/.skllm/gguf``."""
        write("gguf_download_path", _text("gguf_download_path", os.fspath(path)))

    @staticmethod
    def get_gguf_download_path() -> str:
        """Return the directory for downloaded GGUF files."""
        return str(Path(read("gguf_download_path") or "~/.skllm/gguf").expanduser())

    @staticmethod
    def set_gguf_max_gpu_layers(n_layers: int) -> None:
        """Set how many layers go to the GPU: 0 none, -1 all, n > 0 that many. A loaded model is not reloaded."""
        write("gguf_max_gpu_layers", _gpu_layers(n_layers))

    @staticmethod
    def get_gguf_max_gpu_layers() -> int:
        """Return how many layers go to the GPU."""
        return _gpu_layers(read("gguf_max_gpu_layers"))

    @staticmethod
    def set_gguf_verbose(verbose: bool) -> None:
        """Set whether llama.cpp's own log is shown."""
        write("gguf_verbose", _flag("gguf_verbose", verbose))

    @staticmethod
    def get_gguf_verbose() -> bool:
        """Return whether llama.cpp's own log is shown."""
        return _flag("gguf_verbose", read("gguf_verbose"))

    @staticmethod
    def set_gguf_resources(
        model: str | None = None,
        *,
        min_replicas: int = 1,
        max_replicas: int | None = None,
        num_gpus: float | None = None,
        num_cpus: float | None = None,
        cpu_replicas: int = 0,
        n_ctx: int | None = None,
        keep_alive_s: float | None = None,
        placement_timeout_s: float | None = None,
    ) -> None:
        """Set how many actors hold a GGUF model and what each takes of the cluster.

        Parameters
        ----------
        model : str or None, default=None
            The name after ``gguf::``; None sets it for all models that have no setting of their own.
        min_replicas : int, default=1
            Actors that must find room; a ``PlacementError`` otherwise.
        max_replicas : int or None, default=None
            Actors that there may be. With a number, Ray's autoscaler is asked for the nodes of as many as have rows to
            do, and what they no longer do is given back. None means one for each node, or `min_replicas` if that is
            more: as many are started as the cluster has room for, and more when there is room later.
        num_gpus : float or None, default=None
            GPUs per actor: a fraction shares a GPU, above 1 splits the model. None means 1 if
            GPU layers are set, else 0.
        num_cpus : float or None, default=None
            CPUs, and as many llama.cpp threads, per actor. None means as many threads as the largest node has CPUs,
            eight at most, and one CPU less than that, which is left for reading and writing Datasets.
        cpu_replicas : int, default=0
            Actors without a GPU that may work beside those with one, where CPUs are free and rows wait: each gets as
            many rows as its measured speed allows. They load no layer to a GPU, they need not come, no node is asked
            for them, and they leave where others need their CPUs. A model without GPUs has none of them.
        n_ctx : int or None, default=None
            Tokens of llama.cpp's context, of at least 32: the longest prompt with its answer that fits, and what the
            rows decoded together share. Its memory grows with it. None takes a catalogue model's own length, else what
            the model was trained for, 8,192 at most. More than it was trained for is refused when it is loaded.
        keep_alive_s : float or None, default=None
            How long, in seconds, an idle model stays loaded when the driver has ended, so that the cluster's next job
            finds it. All jobs share such a model. None unloads it with the driver.
        placement_timeout_s : float or None, default=None
            How long, in seconds, actors may wait for room. None means a minute, or 20 minutes where an autoscaler runs,
            which may bring a node.

        Raises
        ------
        ConfigurationError
            If a number is out of its range.
        """
        resources = GGUFResources(
            min_replicas=_at_least("min_replicas", min_replicas, 1),
            max_replicas=None if max_replicas is None else _at_least("max_replicas", max_replicas, min_replicas),
            num_gpus=None if num_gpus is None else _number("num_gpus", num_gpus),
            num_cpus=None if num_cpus is None else _number("num_cpus", num_cpus),
            cpu_replicas=_at_least("cpu_replicas", cpu_replicas, 0),
            n_ctx=None if n_ctx is None else _at_least("n_ctx", n_ctx, 32),
            keep_alive_s=None if keep_alive_s is None else _number("keep_alive_s", keep_alive_s),
            placement_timeout_s=(
                None if placement_timeout_s is None else _number("placement_timeout_s", placement_timeout_s)
            ),
        )
        if resources.num_gpus is not None and resources.num_gpus > 1 and resources.num_gpus % 1:
            raise ConfigurationError(f"num_gpus={num_gpus}: above 1, Ray takes whole GPUs only.", "Pass 2, not 1.5.")
        write_for("gguf_resources", _file_of(model), resources)

    @staticmethod
    def get_gguf_resources(model: str | None = None) -> GGUFResources:
        """Return the resources of `model`: its own setting, else the one for all, else the defaults."""
        given = dict(current().gguf_resources)
        return given.get(_file_of(model)) or given.get(None) or GGUFResources()


def _file_of(model: str | None) -> str | None:
    """Return a model's name without its namespace."""
    return None if model is None else model.rpartition("::")[2]

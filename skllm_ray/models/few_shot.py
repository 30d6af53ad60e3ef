"""Where the first release's pickles look for a transformer's backend."""

from skllm_ray.models._base.transformer_backend import TransformerBackend, TransformerSpec

__all__ = ["TransformerBackend", "TransformerSpec"]

"""Settings of this process, and what they are made of."""

from skllm_ray.config.checks import checked_key, checked_url
from skllm_ray.config.resolve import resolve_secret
from skllm_ray.config.secret import Secret
from skllm_ray.config.settings import OPENAI_KEY_ENV, Settings, SKLLMConfig
from skllm_ray.config.values import C, GGUFResources, Price, RateLimit, SecretRef, Timeouts, lasting

__all__ = [
    "OPENAI_KEY_ENV",
    "C",
    "GGUFResources",
    "Price",
    "RateLimit",
    "SKLLMConfig",
    "Secret",
    "SecretRef",
    "Settings",
    "Timeouts",
    "checked_key",
    "checked_url",
    "lasting",
    "resolve_secret",
]

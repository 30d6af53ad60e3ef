"""Settings of this process, and what they are made of."""

from skllm_ray.config.checks import checked_key, checked_org, checked_url
from skllm_ray.config.process_state import DEFAULT_NAMESPACES as DEFAULT_NAMESPACES
from skllm_ray.config.process_state import OPENAI_KEY_ENV as OPENAI_KEY_ENV
from skllm_ray.config.process_state import Settings
from skllm_ray.config.resolve import resolve_secret
from skllm_ray.config.secret import Secret
from skllm_ray.config.settings import SKLLMConfig
from skllm_ray.config.values import Confidence, GGUFResources, Price, RateLimit, SecretRef, Timeouts, lasting

_Settings = Settings  # the first release's pickles name it so

__all__ = [
    "Confidence",
    "GGUFResources",
    "Price",
    "RateLimit",
    "SKLLMConfig",
    "Secret",
    "SecretRef",
    "Settings",
    "Timeouts",
    "checked_key",
    "checked_org",
    "checked_url",
    "lasting",
    "resolve_secret",
]

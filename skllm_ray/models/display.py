"""The public names of :mod:`skllm_ray.models._base.entity_page`."""

from skllm_ray.models._base.entity_page import EntityPage, show

__all__ = ["EntityPage", "show"]

"""Prompt templates and the one function that fills them."""

from skllm_ray.prompts.builders import check_template, fence, fill, fill_each, format_example, format_labels

__all__ = ["check_template", "fence", "fill", "fill_each", "format_example", "format_labels"]

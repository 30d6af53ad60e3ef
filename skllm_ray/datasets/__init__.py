"""Sample texts for trying the estimators, written for this library."""

from skllm_ray.datasets.multi_class import get_classification_dataset
from skllm_ray.datasets.multi_label import get_multilabel_classification_dataset
from skllm_ray.datasets.reviews import get_plain_reviews_dataset, get_reviews_dataset
from skllm_ray.datasets.summarization import get_summarization_dataset
from skllm_ray.datasets.topics import get_topics_dataset
from skllm_ray.datasets.translation import get_translation_dataset

__all__ = [
    "get_classification_dataset",
    "get_multilabel_classification_dataset",
    "get_plain_reviews_dataset",
    "get_reviews_dataset",
    "get_summarization_dataset",
    "get_topics_dataset",
    "get_translation_dataset",
]

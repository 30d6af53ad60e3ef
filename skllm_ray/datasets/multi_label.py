"""Ten shop reviews, each labelled with the subjects it speaks about."""

from __future__ import annotations

__all__ = ["get_multilabel_classification_dataset"]

_LABELLED_REVIEWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "The blender is built like a tank and chops ice without complaint, but I could have had two of them elsewhere "
        "for what I paid.",
        ("quality", "price"),
    ),
    (
        "It was promised for Monday and came on Saturday, in a box so crushed that one corner had burst open.",
        ("delivery", "packaging"),
    ),
    (
        "I rang the hotline about a missing cable. A friendly man answered at once and sorted it out while I waited.",
        ("customer support",),
    ),
    (
        "My father is 84 and had the radio playing within a minute: one big button, no menus.",
        ("ease of use",),
    ),
    (
        "They stock more than sixty kinds of tea, from smoked to flowering, and even the rare ones cost less than at "
        "the shop in town.",
        ("variety", "price"),
    ),
    (
        "Sending the shoes back was simple. I left them at the kiosk, and two days later I had my money.",
        ("returns",),
    ),
    (
        "The seams of the jacket came undone after a week, and now the shop refuses to take it back. Three mails to "
        "their help desk have gone unanswered.",
        ("quality", "returns", "customer support"),
    ),
    (
        "Ordered at noon, rang at my door by six, and everything was wrapped in paper instead of plastic.",
        ("delivery", "packaging"),
    ),
    (
        "Only two colours and one size to choose from, and the clasp is so fiddly that I need help to put it on.",
        ("variety", "ease of use"),
    ),
    (
        "For twelve euros I expected nothing, yet this knife is sharper and sturdier than my expensive one.",
        ("price", "quality"),
    ),
)


def get_multilabel_classification_dataset() -> tuple[list[str], list[list[str]]]:
    """Return ten shop reviews with the one to three subjects that each of them speaks about.

    The subjects are ``"quality"``, ``"price"``, ``"delivery"``, ``"packaging"``, ``"customer support"``,
    ``"ease of use"``, ``"variety"`` and ``"returns"``.

    Returns
    -------
    X : list of str, of shape (10,)
        The reviews.
    y : list of list of str, of shape (10,)
        The subjects of each review.

    Examples
    --------
    >>> from skllm_ray.datasets import get_multilabel_classification_dataset
    >>> X, y = get_multilabel_classification_dataset()
    >>> len(X), y[0]
    (10, ['quality', 'price'])
    """
    return [text for text, _ in _LABELLED_REVIEWS], [list(labels) for _, labels in _LABELLED_REVIEWS]

"""Thirty film reviews with their sentiment."""

from __future__ import annotations

__all__ = ["get_classification_dataset"]

_POSITIVE = (
    "I walked into The Lanternfish Hour knowing nothing and walked out wanting to see it again that same night.",
    "Copper Valley made me laugh, then cry, then call my mother. What a wonderful film.",
    "The young lead in Three Winters in Osby gives the best performance I have seen this year.",
    "Every frame of Paper Herons could hang on a wall, and the story is just as beautiful as the pictures.",
    "Not a dull minute in The Borrowed Alibi. The plot fits together like a watch, and the last twist is superb.",
    "My kids have asked for Captain Turnip and the Upside-Down Sea four evenings in a row, and I gladly join them.",
    "Dry, clever and unexpectedly warm: A Quiet Year for Thieves is the comedy I had been hoping for.",
    "The score of Glass Orchard gave me goosebumps. I bought the soundtrack on the way home.",
    "I was afraid that Return to Marrow Street would spoil the original. It is even better.",
    "Thank you, whoever made The Beekeeper's Son. I haven't felt so hopeful leaving a cinema in years.",
)

_NEGATIVE = (
    "Thunder Ledger is two and a half hours of people explaining the plot to each other. I was bored stiff.",
    "I wanted to like Velvet Static, but the dialogue is so clumsy that the audience laughed in the sad scenes.",
    "The Tin Parade wastes a great cast on a script that seems to have been written during lunch.",
    "We left Midnight in Sector Nine after forty minutes. Life is too short.",
    "Ugly effects, a hero without any charm and jokes that hurt: Mega Badger 2 is the worst film of the summer.",
    "Don't let the trailer of The Salt Road fool you. It contains the only three good shots.",
    "I have seen school plays with more suspense than The Hollow Staircase.",
    "A Duke for Christmas insulted my intelligence and then asked me to find it romantic.",
    "What a letdown. The Cartographer's Daughter was my favourite book, and this film understands nothing of it.",
    "The sound in Red Harbour is so muddy that I missed half of the lines, and what I heard was dreadful.",
)

_NEUTRAL = (
    "Northbound Freight runs for 104 minutes and was filmed in two harbour towns. It opens on Thursday.",
    "The Clay Pigeon is all right. I watched it on a plane and remember most of it.",
    "Some scenes of Winter Wheat are lovely and others drag on, so for me it balances out.",
    "Sister Ash is the third film of the series and begins a week after the second one ended.",
    "I neither liked nor disliked The Understudy. It filled an evening.",
    "Fans of the director will find in Open Water Diary what they always find. Everyone else can take it or leave it.",
    "Four Doors Down has a strong beginning and a weak end. Average, I would say.",
    "The Ferryman's Account is told in two time lines, one in colour and one in black and white.",
    "Good actors, ordinary story: The Long Table is the kind of film you see once.",
    "My friends argued about Silver Mile all the way home. I had no strong opinion either way.",
)


def get_classification_dataset() -> tuple[list[str], list[str]]:
    """Return 30 film reviews with their sentiment: ten positive, ten negative, ten neutral, in this order.

    The films are invented.

    Returns
    -------
    X : list of str, of shape (30,)
        The reviews, one to three sentences each.
    y : list of str, of shape (30,)
        ``"positive"``, ``"negative"`` or ``"neutral"``.

    Examples
    --------
    >>> from skllm_ray.datasets import get_classification_dataset
    >>> X, y = get_classification_dataset()
    >>> len(X), y[0], y[10], y[20]
    (30, 'positive', 'negative', 'neutral')
    """
    texts = [*_POSITIVE, *_NEGATIVE, *_NEUTRAL]
    labels = ["positive"] * len(_POSITIVE) + ["negative"] * len(_NEGATIVE) + ["neutral"] * len(_NEUTRAL)
    return texts, labels

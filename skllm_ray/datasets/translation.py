"""Six short texts in six languages to translate."""

from __future__ import annotations

__all__ = ["get_translation_dataset"]

_TEXTS = (
    "El panadero abre su tienda a las cinco de la mañana. A esa hora, la calle ya huele a pan recién hecho.",
    "Nous avons manqué le dernier train, alors nous avons marché le long de la rivière jusqu'au village.",
    "Meine Nachbarin züchtet Bienen auf dem Dach. Jeden Herbst stellt sie mir ein Glas Honig vor die Tür.",
    "A minha avó guarda todas as cartas numa caixa azul e lê uma delas em cada domingo de chuva.",
    "Včera večer v celé ulici nešel proud, a tak jsme vytáhli svíčky a hráli karty až do půlnoci.",
    "De fietsenmaker had geen tijd, maar hij leende mij zijn gereedschap en legde uit hoe het moest.",
)


def get_translation_dataset() -> list[str]:
    """Return six texts, in Spanish, French, German, Portuguese, Czech and Dutch, in this order.

    Returns
    -------
    X : list of str, of shape (6,)
        The texts, one or two sentences each.

    Examples
    --------
    >>> from skllm_ray.datasets import get_translation_dataset
    >>> len(get_translation_dataset())
    6
    """
    return list(_TEXTS)

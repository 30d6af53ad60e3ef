"""Ten short news-like paragraphs to summarize."""

from __future__ import annotations

__all__ = ["get_summarization_dataset"]

_PARAGRAPHS = (
    "The town of Elmsford reopened its public swimming hall on Saturday after two years of repairs. The roof was "
    "replaced, the pool was lined with steel, and waste heat from a nearby dairy now warms the water. Entry is free "
    "until the end of the month. The council expects to spend a third less on energy than before.",
    "A fishing crew off the northern coast pulled up a bronze bell that had lain on the sea bed for about three "
    "hundred years. Divers later found the ribs of a merchant ship at the same spot. Historians believe that it sank "
    "in a storm with a cargo of tiles. The bell will be cleaned in fresh water before it goes to a museum.",
    "From September, bus drivers in the Lower Marsh district will stop wherever passengers ask after nine in the "
    "evening, provided that the road is safe. A trial on two lines showed that it cost less than a minute per trip. "
    "Women in particular said that they felt safer on their way home.",
    "Growers in the Arden hills expect the smallest apple harvest in fifteen years. Frost in April killed many "
    "blossoms, and hail in June damaged the fruit that was left. Several cider makers have said that they will buy "
    "from the south this year. Prices in the shops are likely to rise before winter.",
    "A primary school has put its entire timetable an hour later after pupils asked for it in a vote. Teachers were "
    "doubtful at first. Half a year on, fewer children come late, and the reading marks of the youngest have improved. "
    "Parents who start work early can bring their children to a supervised breakfast from seven.",
    "Scientists have counted every tree in the delta with the help of drones and found nearly twice as many as "
    "earlier estimates. Most of the additional trees stand alone in fields and gardens. The researchers say that such "
    "trees store a fifth of the region's carbon, yet no law protects them.",
    "The museum of clocks in Harrow Bridge will close for good in May. It drew only four thousand visitors last year, "
    "and the heating alone cost more than the tickets brought in. Its eight hundred clocks will be lent to libraries, "
    "stations and hospitals, where volunteers will wind them.",
    "An amateur orchestra made up of night-shift workers gave its first concert at six in the morning in a tram depot. "
    "More than five hundred people came. The musicians, among them nurses, bakers and a lighthouse keeper, rehearse "
    "after work when most of the town is getting up. A second concert is planned for spring.",
    "The ferry company that links the three islands has ordered two electric ships. They will carry forty cars each "
    "and recharge in twelve minutes while passengers board. The first should enter service in two years. Until then, "
    "the old diesel ferries will sail at reduced speed to save fuel.",
    "After a series of burst pipes, engineers have begun to listen to the water network at night with small "
    "microphones. In the first month they located thirty leaks that nobody had noticed. Repairing them saves as "
    "much water as two thousand households use. The listening devices will now be installed in the whole city.",
)


def get_summarization_dataset() -> list[str]:
    """Return ten short news-like paragraphs; their facts are invented.

    Returns
    -------
    X : list of str, of shape (10,)
        The paragraphs, three to five sentences each.

    Examples
    --------
    >>> from skllm_ray.datasets import get_summarization_dataset
    >>> len(get_summarization_dataset())
    10
    """
    return list(_PARAGRAPHS)

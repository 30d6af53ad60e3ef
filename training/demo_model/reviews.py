"""Reviews of a known sentiment.

What a text means follows from how it is composed: the clause after "but" decides, negation turns a word round, praise
set against criticism of the same weight is neutral.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from training.demo_model.surface import (
    DOMAINS,
    GENERAL,
    SLOTS,
    article,
    fill,
    is_plural,
    sentences,
    surface,
    upper_first,
    weighted,
)

SENTIMENTS = ("positive", "negative", "neutral")
POLES = {"positive": "pos", "negative": "neg", "neutral": "mid"}
OPPOSITE = {"pos": "neg", "neg": "pos"}


def _valence() -> dict[str, list[str]]:
    """Read the words that VADER's lexicon rates at least 1.5 from neutral, on its scale from -4 to 4."""
    rated = sorted(SentimentIntensityAnalyzer().lexicon.items())
    words = [(word, value) for word, value in rated if word.isalpha() and word.islower()]
    return {
        "pos": [word for word, value in words if value >= 1.5],
        "neg": [word for word, value in words if value <= -1.5],
    }


VALENCE = _valence()


class Review:
    """Composes one review about one thing of one domain."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.domain = rng.choice(DOMAINS)
        self.thing = rng.choice(self.domain["things"])
        self.plural = is_plural(self.thing)
        self.past = rng.random() < 0.35

    # -- words
    def pick(self, section: str, key: str) -> str:
        return self.rng.choice(GENERAL[section][key])

    def phrase(self, text: str) -> str:
        """Fill the slots, and now and then name the thing where the phrase says "it"."""
        text = fill(self.rng, text, self.thing)
        if text.startswith("it ") and not self.plural and self.rng.random() < 0.4:
            text = f"{self.subject()[0]} {text[3:]}"
        elif self.plural and text.startswith("it is "):
            text = "they are " + text[6:]
        elif " it" in text and self.rng.random() < 0.15:
            target = ("these " if self.plural else "this ") + self.thing
            text = re.sub(r" it$", f" {target}", text)
        return text

    def subject(self) -> tuple[str, str]:
        """Return a subject and its form of "to be"."""
        rng, thing = self.rng, self.thing
        be = ("were" if self.past else "are") if self.plural else ("was" if self.past else "is")
        if self.plural:
            return rng.choice((f"the {thing}", f"these {thing}", "they", f"my {thing}", "they", "these")), be
        names = (
            f"the {thing}",
            f"this {thing}",
            f"my {thing}",
            f"our {thing}",
            f"the {thing} itself",
            "it",
            "it",
            "this",
        )
        return rng.choice(names), be

    def target(self) -> str:
        name = self.thing
        return self.rng.choice(
            ("them", f"these {name}", f"the {name}") if self.plural else ("it", f"this {name}", f"the {name}", "it")
        )

    def adjective(self, pole: str) -> str:
        return self.pick("adjectives", pole)

    def attribute(self, pole: str) -> str:
        """Return an adjective that may stand before a noun."""
        while True:
            word = self.adjective(pole)
            if (
                " " not in word
                and "," not in word
                and word not in ("ok", "OK", "okay", "alright", "meh", "ace", "fab", "rad")
            ):
                return word

    def intensifier(self) -> str:
        draw = self.rng.random()
        if draw < 0.5:
            return ""
        return self.pick("intensifiers", "up") + " "

    def predicate(self, pole: str) -> str:
        """Return what may follow "is": an adjective, intensified where that is possible."""
        word = self.adjective(pole)
        if pole == "mid" or word.startswith(
            ("a ", "an ", "worth", "not ", "second", "out ", "to die", "beneath", "dead")
        ):
            return word
        return self.intensifier() + word

    # -- clauses with an adjective
    def plain(self, pole: str) -> str:
        rng = self.rng
        subject, be = self.subject()
        word = self.attribute(pole)
        noun = self.thing
        one = noun if self.plural else article(f"{word} {noun}")
        strong = "" if pole == "mid" else self.intensifier()
        frames = [
            f"{subject} {be} {self.predicate(pole)}",
            f"{subject} {be} {self.predicate(pole)}",
            f"{subject} {be} {self.predicate(pole)}",
            f"{self.predicate(pole)}",
            f"{strong}{word} {noun}",
            f"{word} {self.pick('parts', 'all')}",
            f"the {self.pick('parts', 'all')} {'was' if self.past else 'is'} {self.predicate(pole)}",
            f"the {self.pick('parts', 'all')} {'was' if self.past else 'is'} {self.predicate(pole)}",
            f"{subject} {be} {self.adjective(pole)} and {self.adjective(pole)}",
            f"{self.adjective(pole)}, {self.adjective(pole)}, {self.adjective(pole)}",
            f"I find {self.target()} {self.predicate(pole)}",
            f"I found {self.target()} {self.predicate(pole)}",
            f"{subject} {'turned out to be' if self.past else 'seemed'} {self.predicate(pole)}",
            f"everything {'was' if self.past else 'is'} {self.predicate(pole)}",
            f"from start to finish {self.adjective(pole)}",
            f"{subject} {'looked and felt' if self.past else 'looks and feels'} {self.adjective(pole)}",
        ]
        if not self.plural:
            frames += [
                f"what {article(word)} {noun}",
                f"such {one}",
                f"this is {one}",
                f"it's {one}",
                f"{article(word)} experience",
            ]
        return rng.choice(frames)

    def turned(self, pole: str) -> str:
        """Say `pole` by negating its opposite."""
        rng = self.rng
        subject, be = self.subject()
        if pole == "mid":
            good, bad = self.attribute("pos"), self.attribute("neg")
            return rng.choice(
                (
                    f"{subject} {be} neither {good} nor {bad}",
                    f"{subject} {be} not {good}, but not {bad} either",
                    f"{subject} {be} not {bad}, but not {good} either",
                    f"not {good}, not {bad}",
                    f"not exactly {good}, not really {bad}",
                    f"I would not call {self.target()} {good}, nor {bad}",
                    f"{subject} {be} a bit {bad} but {self.adjective('mid')}",
                    f"{subject} {be} {self.adjective('mid')}, though not {good}",
                    f"nothing {good}, nothing {bad}",
                    f"some of it {be} {good}, some of it {be} {bad}",
                    f"parts of it are {good}, other parts are {bad}",
                    f"{good} at times, {bad} at others",
                    f"{good} in some ways, {bad} in others",
                    f"{subject} {be} {good} one day and {bad} the next",
                )
            )
        word = self.attribute(OPPOSITE[pole])
        if pole == "neg":
            return rng.choice(
                (
                    f"{subject} {be} not {word}",
                    f"{subject} {be} not {word} at all",
                    f"{subject} {be} not very {word}",
                    f"{subject} {be} not that {word}",
                    f"{subject} {be} not particularly {word}",
                    f"{subject} {be} not exactly {word}",
                    f"{subject} {be} not even {word}",
                    f"{subject} {be} far from {word}",
                    f"{subject} {be} anything but {word}",
                    f"{subject} {be} hardly {word}",
                    f"not {word}",
                    f"not a {word} {self.thing}",
                    f"nothing {word} about {self.target()}",
                    f"there is nothing {word} about {self.target()}",
                    f"I don't find {self.target()} {word}",
                    f"I would not call {self.target()} {word}",
                    f"{subject} {be} not as {word} as {self.reference()}",
                    f"{subject} {be} not nearly as {word} as {self.reference()}",
                    f"{subject} {be} less {word} than {self.reference()}",
                    f"how anyone can call {self.target()} {word} is beyond me",
                    f"{subject} {be} never {word}",
                    f"{subject} could be more {word}, to put it mildly",
                    f"{subject} {be} supposed to be {word}, it is not",
                    f"so much for {word}",
                )
            )
        return rng.choice(
            (
                f"{subject} {be} not {word} at all",
                f"{subject} {be} not {word} in the least",
                f"{subject} {be} never {word}",
                f"{subject} {be} anything but {word}",
                f"{subject} {be} far from {word}",
                f"not {word} at all",
                f"nothing {word} about {self.target()}",
                f"there is nothing {word} about {self.target()}",
                f"no, {subject} {be} not {word}",
                f"{subject} {be} by no means {word}",
                f"{subject} {be} not the least bit {word}",
                "not bad at all",
                "not bad at all",
                f"{subject} {be} not half bad",
                "not too shabby",
                f"I cannot find anything {word} about {self.target()}",
                f"never {word}, never {self.attribute('neg')}",
            )
        )

    def reference(self) -> str:
        return self.pick("reference", "all")

    def compared(self, pole: str) -> str:
        rng = self.rng
        subject, be = self.subject()
        if pole == "mid":
            return rng.choice(
                (
                    f"{subject} {be} about as good as {self.reference()}",
                    f"{subject} {be} no better than {self.reference()}, and no worse",
                    f"{subject} {be} the same as {self.reference()}",
                    f"better than {self.reference()} in some ways, worse in others",
                    f"could be {self.pick('comparatives', 'pos')}, could be {self.pick('comparatives', 'neg')}",
                    f"{subject} could be {self.pick('comparatives', 'pos')}, but it will do",
                    f"I have had {self.pick('comparatives', 'pos')} ones and {self.pick('comparatives', 'neg')} ones",
                    f"{subject} {be} good enough, others are {self.pick('comparatives', 'pos')}",
                )
            )
        word, more = self.attribute(pole), self.pick("comparatives", pole)
        frames = [
            f"{subject} could not be {more}",
            f"{subject} {be} {more} than {self.reference()}",
            f"{subject} {be} much {more} than {self.reference()}",
            f"{subject} {be} far {more} than {self.reference()}",
            f"{subject} {be} even {more} than {self.reference()}",
            f"{more} than {self.reference()}",
            f"I have never had a {more} {self.thing}",
            f"one of the most {word} {self.thing}s I have had",
            f"the most {word} {self.thing} I know",
            f"{subject} {be} the {'best' if pole == 'pos' else 'worst'} {self.thing} {self.ever()}",
            f"the {'best' if pole == 'pos' else 'worst'} {self.thing} {self.ever()}",
            f"{'best' if pole == 'pos' else 'worst'} {self.thing} ever",
            f"by far the {'best' if pole == 'pos' else 'worst'} {self.pick('parts', 'all')} {self.ever()}",
        ]
        if pole == "pos":
            frames += [
                f"{subject} {be} as {word} as {self.reference()}",
                f"every bit as {word} as {self.reference()}",
                f"{subject} {be} less {self.attribute('neg')} than I feared",
                f"I have never seen such a {word} {self.thing}",
            ]
        return rng.choice(frames)

    def ever(self) -> str:
        return self.pick("ever", "all")

    def feeling(self, pole: str) -> str:
        rng = self.rng
        who, be = rng.choice(
            (("I", "am"), ("I", "am"), ("I", "was"), ("we", "were"), ("we", "are"), ("everyone", "was"))
        )
        if rng.random() < 0.12 and pole != "mid":
            who, be = rng.choice(SLOTS["person"]), rng.choice(("is", "was"))
        word = self.pick("feelings", pole)
        rest = rng.choice(
            ("", "", "", f" with {self.target()}", " with this purchase", f" about {self.target()}", " with the result")
        )
        if " it" in word or len(word.split()) > 3:
            rest = ""
        if pole != "mid" and rng.random() < 0.18:
            other = rng.choice(
                ("happy", "impressed", "satisfied", "pleased", "convinced", "thrilled", "amused", "a fan")
            )
            if pole == "pos":
                other = rng.choice(("disappointed", "let down", "bored", "unhappy", "sorry", "annoyed"))
                return (
                    f"{who} {be} {rng.choice(('not', 'never', 'not once', 'not at all', 'not in the least'))} {other}"
                )
            denial = rng.choice(("not", "not very", "not at all", "far from", "less than", "not too", "anything but"))
            return f"{who} {be} {denial} {other}{rest}"
        return f"{who} {be} {word}{rest}"

    def verb(self, pole: str) -> str:
        rng = self.rng
        words = self.pick("verbs", pole)
        who = rng.choice(("I", "I", "I", "I", "We", "")) if not re.search(r"\bam\b", words) else "I"
        what = rng.choice((self.target(), self.target(), f"the {self.pick('parts', 'all')}"))
        tail = (
            rng.choice(("", "", "", " so much", " a lot", " every day", " from day one", " already"))
            if pole == "pos"
            else ""
        )
        return f"{who} {words} {what}{tail}".strip() if who != "We" else f"we {words} {what}{tail}"

    def manner(self, pole: str) -> str:
        subject, _ = self.subject()
        works = self.rng.choice(
            ("works", "worked", "runs", "does its job", "performs", "functions", "fits", "cleans", "did what it should")
        )
        if self.plural:
            works = self.rng.choice(("work", "worked", "fit", "hold up", "perform"))
        return f"{subject} {works} {self.pick('adverbs', pole)}"

    def noun(self, pole: str) -> str:
        rng = self.rng
        word = self.pick("praisenouns", pole)
        kind = (
            rng.choice(("", "", "absolute ", "total ", "real ", "complete ", "true ", "huge ", "proper "))
            if pole != "mid"
            else ""
        )
        one = article(kind + word)
        subject, be = self.subject()
        frames = [f"{subject} {be} {one}", one, f"what {one}", f"this is {one}", f"in short, {one}", f"it's {one}"]
        if pole == "neg" and rng.random() < 0.2:
            return rng.choice(
                (
                    f"{subject} {be} no {self.pick('praisenouns', 'pos')}",
                    f"not the {self.pick('praisenouns', 'pos')} I was promised",
                )
            )
        if pole == "pos" and rng.random() < 0.1:
            return f"{subject} {be} no {self.pick('praisenouns', 'neg')}, quite the opposite"
        return rng.choice(frames)

    def flipped(self, pole: str) -> str:
        """Set a disappointed or exceeded expectation."""
        rng, other = self.rng, OPPOSITE[pole]
        subject, be = self.subject()
        expected, found = self.attribute(other), self.predicate(pole)
        return rng.choice(
            (
                f"I expected {self.target()} to be {expected}, but {subject} {be} {found}",
                f"I expected something {expected} and got something {self.attribute(pole)}",
                f"I thought it would be {expected}. It is {found}",
                f"everyone said {subject} {be} {expected}. I found {self.target()} {found}",
                f"they call it {expected}, I call it {self.attribute(pole)}",
                f"{subject} {'looked' if self.past else 'looks'} {expected} but {be} {found}",
                f"it may look {expected}, but {subject} {be} {found}",
                f"at first {subject} {'were' if self.plural else 'was'} {expected}, then {self.strong(pole)}",
                f"I wanted {expected}, I got {self.attribute(pole)}"
                if pole == "neg"
                else f"I feared the worst, but {self.strong(pole)}",
                f"the first day was {expected}, after that {self.strong(pole)}",
                f"I was told it was {expected}, but {self.strong(pole)}",
            )
        )

    # -- clauses by weight
    def mild(self, pole: str) -> str:
        """Return one good or bad point, which does not decide by itself."""
        key, section = {"pos": ("plus", "good"), "neg": ("minus", "bad")}[pole]
        if self.rng.random() < 0.72:
            return self.phrase(self.rng.choice(self.domain[key]))
        return self.phrase(self.pick(section, "all"))

    def strong(self, pole: str) -> str:
        """Return an event or a verdict, which decides."""
        if self.rng.random() < 0.4:
            return self.phrase(self.rng.choice(self.domain[pole]))
        return self.phrase(self.pick("verdicts", pole))

    def fact(self) -> str:
        if self.rng.random() < 0.4:
            return self.phrase(self.rng.choice(self.domain["fact"]))
        return self.phrase(self.pick("facts", "all"))

    def clause(self, pole: str) -> str:
        """Return any one clause of this polarity."""
        strong = self.strong if pole != "mid" else self.shrug
        options: list[tuple[float, Callable[[], str]]] = [
            (4.2, lambda: strong(pole)),
            (2.2, lambda: self.plain(pole)),
            (0.7, lambda: self.turned(pole)),
            (0.6, lambda: self.compared(pole)),
            (0.8, lambda: self.feeling(pole)),
            (0.8, lambda: self.verb(pole)),
            (0.5, lambda: self.manner(pole)),
            (0.5, lambda: self.noun(pole)),
        ]
        if pole != "mid":
            options += [
                (1.8, lambda: self.mild(pole)),
                (0.3, lambda: self.flipped(pole)),
                (0.6, lambda: self.charged(pole)),
            ]
        clause = weighted(self.rng, options)
        if self.rng.random() < 0.1:
            openers = {
                "pos": (
                    "luckily",
                    "happily",
                    "I must say",
                    "wow",
                    "honestly",
                    "thankfully",
                    "without a doubt",
                    "to my delight",
                ),
                "neg": (
                    "sadly",
                    "unfortunately",
                    "regrettably",
                    "honestly",
                    "to be frank",
                    "ugh",
                    "sorry, but",
                    "to my horror",
                ),
                "mid": ("well", "hm", "to be honest", "honestly", "I suppose", "in the end", "for me"),
            }[pole]
            general = (
                "overall",
                "all in all",
                "in short",
                "to be honest",
                "in my opinion",
                "so far",
                "for us",
                "as for me",
            )
            clause = f"{self.rng.choice(openers + general)}, {clause}"
        return clause

    def charged(self, pole: str) -> str:
        """Return a fact coloured by words of VADER's lexicon, whose parts of speech are unknown: syntax is loose."""
        rng = self.rng
        word, other = rng.choice(VALENCE[pole]), rng.choice(VALENCE[pole])
        subject, be = self.subject()
        part = self.pick("parts", "all")
        return rng.choice(
            (
                f"{subject} {be} {word}",
                f"so {word}",
                f"{word}, {other}",
                f"{word} {part}",
                f"{word} {self.thing}",
                f"{self.fact()}, {word}",
                f"{word} and {other}",
                f"the {part} {word}",
                f"it {word} me",
                f"full of {word}",
                f"I {word} {self.target()}",
                f"I was {word}",
                f"{self.fact()} and {be} {word}",
                f"a {word} {self.thing} with a {other} {part}",
                f"it {word} and {other}",
                f"you will be {word}",
            )
        )

    def shrug(self, _: str = "mid") -> str:
        if self.rng.random() < 0.3:
            return self.phrase(self.rng.choice(self.domain["mid"]))
        return self.phrase(self.pick("verdicts", "mid"))

    # -- whole texts
    def contrast(self, pole: str) -> str:
        """Concede one point and let the other side decide."""
        rng, other = self.rng, OPPOSITE[pole]
        softly = rng.choice(("a bit ", "quite ", "rather ", "")) + self.attribute(other)
        concession = weighted(
            rng,
            (
                (3, lambda: self.mild(other)),
                (
                    1,
                    lambda: f"{self.subject()[0]} {self.subject()[1]} {softly}",
                ),
                (0.6, self.fact),
                (0.5, lambda: self.plain(other)),
            ),
        )
        decides = self.strong(pole) if rng.random() < 0.75 else self.clause(pole)
        return rng.choice(
            (
                f"{concession}, but {decides}",
                f"{concession} but {decides}",
                f"{concession}. But {decides}",
                f"{concession}. However, {decides}",
                f"{concession}, yet {decides}",
                f"{concession}; still, {decides}",
                f"{concession}. Still, {decides}",
                f"although {concession}, {decides}",
                f"even though {concession}, {decides}",
                f"{decides}, even though {concession}",
                f"{decides}, although {concession}",
                f"while {concession}, {decides}",
                f"{concession}. Apart from that, {decides}",
                f"{concession}, then {decides}",
                f"granted, {concession}, but {decides}",
                f"okay, {concession}, but {decides}",
                f"{concession} and {rng.choice(('yet', 'still'))} {decides}",
            )
        )

    def mixed(self) -> str:
        """Set one good point against one bad point of the same weight."""
        rng = self.rng
        first, second = ("pos", "neg") if rng.random() < 0.7 else ("neg", "pos")
        one, two = self.mild(first), self.mild(second)
        if rng.random() < 0.15:
            one, two = f"I {self.pick('verbs', 'pos')} the {self.pick('parts', 'all')}", self.mild("neg")
        text = rng.choice(
            (
                f"{one}, but {two}",
                f"{one} but {two}",
                f"{one}. On the other hand, {two}",
                f"{one}, {two}",
                f"{one}. {upper_first(two)}",
                f"{one}, although {two}",
                f"{one}, though {two}",
                f"on the plus side {self.mild('pos')}, on the minus side {self.mild('neg')}",
                f"pros: {self.mild('pos')}. Cons: {self.mild('neg')}",
                f"pro: {self.mild('pos')}, con: {self.mild('neg')}",
                f"good: {self.mild('pos')}. Bad: {self.mild('neg')}",
                f"{one}; {two}",
                f"{one}. However, {two}",
                f"while {one}, {two}",
                f"I like that {self.mild('pos')}, I don't like that {self.mild('neg')}",
            )
        )
        draw = rng.random()
        if draw < 0.3:
            text += rng.choice((", ", ". ")) + self.pick("mixers", "all")
        elif draw < 0.5:
            text += ". " + upper_first(self.shrug())
        return text

    def whole(self, sentiment: str) -> str:
        """Return a whole review of this sentiment."""
        rng, pole = self.rng, POLES[sentiment]
        heat = rng.choice((0.0, 0.0, 0.3, 0.9)) if pole != "mid" else 0.03

        def some(low: int, high: int) -> list[str]:
            clauses = [self.clause(pole) for _ in range(rng.randint(low, high))]
            for _ in range(rng.choice((0, 0, 1, 1, 2))):
                clauses.insert(rng.randint(0, len(clauses)), self.fact())
            return clauses

        def short() -> str:
            text = self.phrase(self.pick("short", pole))
            if rng.random() < 0.4:
                return sentences(rng, [text, self.clause(pole)], heat)
            return text + rng.choice(("", ".", ".", "!" if pole != "mid" else "..."))

        options: list[tuple[float, Callable[[], str]]] = [
            (3, lambda: sentences(rng, some(1, 3), heat)),
            (1.6, lambda: sentences(rng, [self.clause(pole)], heat)),
            (1.0, short),
        ]
        if pole == "mid":
            options += [
                (2.6, lambda: sentences(rng, [self.mixed()], heat)),
                (0.7, lambda: sentences(rng, [self.fact(), self.mixed()], heat)),
                (1.5, lambda: sentences(rng, self.facts(), 0.0)),
                (1.0, lambda: sentences(rng, [self.fact(), self.shrug()], heat)),
            ]
        else:
            options += [
                (1.6, lambda: sentences(rng, [self.contrast(pole)], heat)),
                (0.8, lambda: sentences(rng, [self.contrast(pole), self.clause(pole)], heat)),
                (0.6, lambda: sentences(rng, [self.fact(), self.contrast(pole)], heat)),
                (1.6, lambda: sentences(rng, [self.fact(), self.strong(pole)], heat)),
                (1.0, lambda: sentences(rng, [self.strong(pole), self.strong(pole)], heat)),
                (0.8, lambda: sentences(rng, [self.mild(pole), self.mild(pole)], heat)),
            ]
        text = weighted(rng, options)
        if rng.random() < 0.08:
            text += " " + self.pick("closers", pole)
        if rng.random() < 0.05:
            title = self.phrase(self.pick("short", pole)) if rng.random() < 0.6 else upper_first(self.thing)
            text = rng.choice(('"{}": {}', "{}: {}", "{} - {}", '"{}" {}')).format(title, text)
        return text

    def facts(self) -> list[str]:
        """Return statements without any judgement."""
        rng = self.rng
        found = [
            self.fact() if rng.random() < 0.55 else self.phrase(self.pick("factneutral", "all"))
            for _ in range(rng.choice((1, 2, 2, 3)))
        ]
        if rng.random() < 0.1:
            found.append(self.shrug())
        return found


def sentiment_text(rng: random.Random, sentiment: str) -> str:
    """Return a review of this sentiment."""
    return surface(rng, Review(rng).whole(sentiment))

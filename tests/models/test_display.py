"""Entities as HTML: nothing of a text becomes markup, and a browser shows what was meant."""

from __future__ import annotations

import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import skllm_ray.models._base.estimator
from skllm_ray import classification, text2text, vectorization
from skllm_ray.errors import ConfigurationError, SkllmRayWarning
from skllm_ray.models._base.entity_page import EntityPage
from skllm_ray.models.gpt.tagging.ner import GPTExplainableNER
from skllm_ray.tasks import Span
from skllm_ray.testing import FakeSpec

HOSTILE = '<script>alert("x")</script> & "Ann" </mark><img src=x onerror=alert(1)>'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and the text of the body."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.skipping = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.skipping = tag in {"style", "title"}

    def handle_endtag(self, tag):
        self.skipping = False

    def handle_data(self, data):
        self.text += "" if self.skipping else data


def page(text=HOSTILE, tag='A"><b', why='"><script>'):
    start = text.index("Ann")
    return EntityPage([text, None, "no result"], [[Span(start, start + 3, tag, "Ann", why)], None, None], [tag])


def test_nothing_of_a_text_becomes_markup():
    read = Reader(page().to_html())
    assert set(read.tags) == {"html", "head", "meta", "title", "style", "body", "div", "p", "mark", "b"}
    assert 'A"><b' in read.text
    assert HOSTILE.replace("Ann", 'AnnA"><b') in read.text
    assert ("title", '"><script>') in read.attributes
    assert not [name for name, _ in read.attributes if name.startswith("on") or name in {"src", "href"}]


def test_a_page_needs_no_other_file(tmp_path):
    page().save(tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text("utf-8")
    assert written == page().to_html()
    assert "http" not in written
    assert "prefers-color-scheme: dark" in written
    assert "missing text" in written
    assert "min-height: 100vh" in written
    assert "min-height" not in page()._repr_html_()  # in a notebook it is as high as its texts
    assert "mark[title]:focus::after" in written
    assert "no result" in written


@pytest.fixture
def tagger(monkeypatch, local_mode):
    spec = FakeSpec(lambda request: '{"entities": [{"tag": "NAME", "value": "Ann", "reasoning": "r"}]}')
    monkeypatch.setattr(skllm_ray.models._base.estimator, "resolve", lambda *arguments: spec)
    return GPTExplainableNER({"NAME": "a name"})


def test_display_asks_and_shows(tagger):
    assert "AnnNAME" in Reader(tagger.fit().display(["Ann slept"]).to_html()).text
    with pytest.warns(SkllmRayWarning, match="Jupyter"):
        tagger.set_params(display_predictions=True).transform(["Ann slept"])


@pytest.mark.parametrize("entities", [{}, None, ["NAME"], {"": "x"}, {"NAME": 5}])
def test_entities_that_cannot_work_are_refused(tagger, entities):
    with pytest.raises(ValueError, match="entities"):
        tagger.set_params(entities=entities).fit()
    with pytest.raises(ConfigurationError, match="num_workers"):
        GPTExplainableNER({"NAME": "a name"}, num_workers=0).fit()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page was NOT looked at in a browser")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_it(tmp_path, theme):
    page("Ann met Bob in Paris; a < b.").save(tmp_path / "page.html")
    dark = ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,400", *dark]
    where = (tmp_path / "page.html").as_uri()
    shown = subprocess.run([BROWSER, *options, "--dump-dom", where], capture_output=True, text=True, timeout=120)
    assert "<mark" in shown.stdout
    shot = tmp_path / f"{theme}.png"
    subprocess.run([BROWSER, *options, f"--screenshot={shot}", where], capture_output=True, timeout=120, check=True)
    assert shot.stat().st_size > 2000


def test_the_question_mark_in_an_estimator_s_html_leads_to_its_entry_in_the_docs(monkeypatch):
    entries = set(re.findall(r"autoclass:: (\S+)", (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")))
    shown = [getattr(module, name) for module in (classification, text2text, vectorization) for name in module.__all__]
    monkeypatch.setenv("SKLLM_CONFIG_DOCS_URL", "https://docs.example.com/skllm-ray/")
    for kind in shown:
        site, _, entry = kind._get_doc_link(kind.__new__(kind)).partition("#")
        assert site == "https://docs.example.com/skllm-ray/api.html"
        assert entry in entries
    clf = classification.ZeroShotGPTClassifier(model="gguf::demo")
    assert "api.html#skllm_ray.classification.ZeroShotGPTClassifier" in clf._repr_html_()
    monkeypatch.setenv("SKLLM_CONFIG_DOCS_URL", "javascript:alert(1)")
    assert clf._get_doc_link() == ""
    monkeypatch.delenv("SKLLM_CONFIG_DOCS_URL")
    assert clf._get_doc_link() == ""

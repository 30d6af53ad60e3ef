"""Plans of several steps, and a task of one's own, on Datasets of a real Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from skllm_ray.config import SKLLMConfig
from skllm_ray.errors import ConfigurationError
from skllm_ray.execution.plan import Unsure
from skllm_ray.testing import ChatServer
from tests.batch.plans import World, configure, expected, sure_of_good, texts
from tests.rating import Rater

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_here")]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    SKLLMConfig.reset()


@pytest.mark.deep
def test_two_models_on_a_dataset_and_in_a_call_of_many_rows():
    world = World()
    with ChatServer(world.answer) as server:
        clf = configure(server)
        found = clf.predict(texts(1000))  # more than one block
        assert found.tolist() == [expected(i)[0] for i in range(1000)]
        assert (world.n("fast"), world.n("strong")) == (1000, 251)
        dataset = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts(600))])
        with pytest.raises(ConfigurationError, match="rows of a Dataset have none"):
            clf.predict_dataset(dataset)
        assert server.n_requests == 1251
        clf.takes = (Unsure(0.5, score=sure_of_good),)
        done = clf.predict_dataset(dataset, details=True).to_pandas().sort_values("id")
        assert done["prediction"].tolist() == [expected(i)[0] for i in range(600)]
        assert (world.n("fast"), world.n("strong")) == (1600, 401)
        assert done["cost_usd"].notna().all()
        assert done["cost_usd"].max() > 30 * done["cost_usd"].min()


def test_a_new_task_on_a_dataset():
    with ChatServer(lambda body: '{"rating": 4}') as server:
        SKLLMConfig.set_gpt_url(server.url)
        dataset = ray.data.from_items([{"id": i, "text": text} for i, text in enumerate(texts(300))])
        found = Rater(model="custom_url::m").fit().transform_dataset(dataset, details=True).to_pandas()
    assert found["rating"].tolist() == [4] * 300
    assert found["valid"].all()

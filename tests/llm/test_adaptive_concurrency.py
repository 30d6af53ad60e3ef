"""The concurrency that nobody declares: found on servers with few slots and with many, and remembered."""

import pytest

from skllm_ray.config import SKLLMConfig
from skllm_ray.llm.gpt.clients.openai.spec import OpenAISpec
from skllm_ray.llm.rate_limit.adaptive_concurrency import FIRST, FIRST_OF_A_SERVER, Knee
from skllm_ray.llm.rate_limit.limiter import Quotas
from skllm_ray.llm.rate_limit.messages import Refusal, Report
from skllm_ray.llm.registry import resolve
from skllm_ray.tasks import ChatRequest
from skllm_ray.testing import ChatServer


class Server:
    """A server with slots, as its clients see it; `hurt` is how much waiting requests slow it down."""

    def __init__(self, slots, base_s, hurt=0.0, most=float("inf")):
        self.slots, self.base_s, self.hurt, self.most = slots, base_s, hurt, most

    def latency_s(self, level):
        waiting = max(0.0, level / self.slots - 1)
        return max(self.base_s * (1 + waiting) * (1 + self.hurt * waiting), level / self.most)

    def throughput(self, level):
        return level / self.latency_s(level)


def run(server, knee, seconds, began=0.0, step_s=0.1):
    """Let a knee see what a server answers at its level; return how much was done in all."""
    now, total, owed = began, 0.0, 0.0
    while now < began + seconds:
        now += step_s
        owed += server.throughput(knee.level) * step_s
        total += server.throughput(knee.level) * step_s
        if owed >= 1:
            knee.look(now, int(owed), server.latency_s(knee.level))
            owed -= int(owed)
    return total


@pytest.mark.parametrize(("first", "hurt"), [(FIRST_OF_A_SERVER, 0.0), (FIRST_OF_A_SERVER, 0.5), (FIRST, 0.0)])
@pytest.mark.parametrize("base_s", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("slots", [1, 4, 64, 1000])
def test_the_level_found_is_within_a_tenth_of_the_best(slots, hurt, base_s, first):
    server, knee = Server(slots, base_s, hurt), Knee(first)
    best = max(server.throughput(level) for level in range(1, 1025))
    for n in range(60):
        run(server, knee, 40 * base_s + 2, began=n * (40 * base_s + 2))
        if knee.is_found:
            break
    assert knee.is_found
    assert server.throughput(knee.level) >= 0.9 * best
    assert knee.level <= max(2 * slots, 2 * first)


def test_a_server_that_has_grown_is_found_out():
    server, knee = Server(4, 0.1), Knee(4)
    run(server, knee, 20)
    assert knee.is_found and knee.level <= 8
    server.slots = 64
    run(server, knee, 200, began=20)
    assert knee.level >= 32


def test_few_answers_and_rows_that_do_not_use_it_all_change_nothing():
    knee = Knee(4)
    knee.look(10.0, 7, 0.1)
    assert knee.level == 4
    quotas = Quotas(lambda: 1.0)
    for number in range(20):
        grant = quotas.exchange(Report("b", "me", number, waiting=0, in_flight=1, done=9, latency_s=0.1, first=4))
    assert grant.concurrency == 4


def test_a_refusal_ends_the_search_and_it_grows_slowly_from_there():
    now = [0.0]
    quotas = Quotas(lambda: now[0])

    def tell(number, **more):
        return quotas.exchange(Report("b", "me", number, waiting=99, in_flight=99, done=9, latency_s=0.05, **more))

    tell(1)
    now[0] = 1.0
    assert tell(2, refusals=(Refusal(0.1, 0.1),)).concurrency <= 32
    now[0] = 5.0
    before = tell(3).concurrency
    now[0] = 6.0
    assert tell(4).concurrency - before <= 4


def test_a_level_is_remembered_for_the_next_call_and_shared_by_all_who_ask():
    now = [0.0]
    quotas = Quotas(lambda: now[0])
    for number in range(40):
        now[0] += 0.6
        grant = quotas.exchange(
            Report("b", "one", number, waiting=999, in_flight=1024, done=99, latency_s=0.05, first=4)
        )
    assert grant.concurrency == 1024
    other = quotas.exchange(Report("b", "two", 1, waiting=999, first=4))
    assert quotas.show()[0].concurrency == 1024
    assert other.concurrency <= 1024


@pytest.mark.parametrize(("model", "first"), [("custom_url::m", 4), ("gpt-5.4-mini", 32)])
def test_servers_of_ones_own_are_asked_by_few_at_first(model, first, monkeypatch):
    with ChatServer(latency_s=0.02) as server:
        SKLLMConfig.set_openai_key("sk-test-0123456789")
        SKLLMConfig.set_gpt_url(server.url) if "custom" in model else monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        spec = resolve(model, None, None, {}, "gpt")
        assert isinstance(spec, OpenAISpec)
        backend = spec.open(lambda ref: "sk-test-0123456789")
        requests = [ChatRequest(({"role": "user", "content": f"{i}"},)) for i in range(first + 1)]
        backend.complete(requests)
        backend.close()
        assert first // 4 < server.most_in_flight <= first  # a busy machine sends fewer


def test_slots_are_what_a_server_works_on_at_once():
    with ChatServer(latency_s=0.05, slots=4, thrashes=True) as server:
        SKLLMConfig.set_gpt_url(server.url)
        backend = resolve("custom_url::m", None, None, {}, "gpt").open(lambda ref: "none")
        replies = backend.complete([ChatRequest(({"role": "user", "content": f"{i}"},)) for i in range(150)])
        backend.close()
        assert all(reply.error is None for reply in replies)
        assert server.most_in_flight <= 8

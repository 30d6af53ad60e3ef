"""The cluster's limiter as its users see it when it is not well; it is tested on a real Ray in tests/cluster."""

import asyncio

import pytest
from click.testing import CliRunner
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError

from skllm_ray import cli
from skllm_ray.execution import rate_limiter
from skllm_ray.llm.rate_limit.messages import Report


class Actor:
    """Stands for the actor and its method."""

    def __init__(self, error):
        self.error = error
        self.exchange = self.show = self

    async def _fail(self):
        raise self.error

    def remote(self, *arguments):
        return self._fail()


@pytest.mark.parametrize("error", [GetTimeoutError("late"), RayActorError(), ActorUnavailableError("", b"x" * 16)])
def test_the_command_says_that_the_limiter_gives_no_answer(monkeypatch, error):
    monkeypatch.setattr("skllm_ray.init", lambda address: None)
    monkeypatch.setattr("ray.get_actor", lambda *name, **where: Actor(error))
    monkeypatch.setattr("ray.get", lambda answer, timeout: asyncio.run(answer))
    done = CliRunner().invoke(cli.main, ["limits"])
    assert done.exit_code == 1
    assert f"rate limiter gives no answer ({type(error).__name__})" in done.output
    assert "try again" in done.output


def test_a_limiter_that_does_not_understand_is_not_asked_for_ever(monkeypatch):
    error = RayTaskError("exchange", "", AttributeError("another version"))
    monkeypatch.setattr(rate_limiter, "_find", lambda: Actor(error))
    monkeypatch.setattr(rate_limiter, "job_key", lambda: "job")
    limiter = rate_limiter.ClusterLimiter.__new__(rate_limiter.ClusterLimiter)
    limiter._node, limiter._actor = "node", Actor(error)
    with pytest.raises(RayTaskError):
        asyncio.run(limiter.exchange(Report("bucket", "me", 1)))


class Stopping(Actor):
    """Gives no answer for a while, as one that was stopped."""

    def __init__(self, n_failures):
        super().__init__(None)
        self.n_left = n_failures

    async def _fail(self):
        self.n_left -= 1
        if self.n_left >= 0:
            raise TimeoutError
        return "a grant"


def test_a_limiter_that_gives_no_answer_is_told_once_and_so_is_its_return(monkeypatch, caplog):
    stopping = Stopping(4)
    monkeypatch.setattr(rate_limiter, "_find", lambda: stopping)
    monkeypatch.setattr(rate_limiter, "job_key", lambda: "job")
    monkeypatch.setattr(rate_limiter, "_TELL_S", 0.1)
    monkeypatch.setattr(rate_limiter, "_n_starts", lambda actor: 0)
    limiter = rate_limiter.ClusterLimiter.__new__(rate_limiter.ClusterLimiter)
    limiter._node, limiter._actor = "node", stopping
    assert asyncio.run(limiter.exchange(Report("bucket", "me", 1))) == "a grant"
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [
        "skllm_ray: waiting for the cluster's rate limiter, which gives no answer (TimeoutError, 0.1 s).",
        "skllm_ray: the cluster's rate limiter answers again.",
    ]


def test_a_limiter_that_stays_stuck_is_ended_once_by_all_who_wait_for_it(monkeypatch):
    now, ended = [0.0], []
    monkeypatch.setattr(rate_limiter.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(rate_limiter, "_n_starts", lambda actor: len(ended))
    monkeypatch.setattr("ray.kill", lambda actor, no_restart: ended.append((now[0], no_restart)))
    waiting = [rate_limiter._Stuck() for _ in range(3)]
    for now[0] in range(0, 100, 5):
        for one in waiting:
            one.replace("the limiter")
    assert ended == [(30, False), (60, False), (90, False)]  # each of them was another start

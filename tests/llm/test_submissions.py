"""Whatever costs money is submitted once: here a batch, which no code of the library's own knows."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from skllm_ray.errors import AmbiguousSubmission, ConfigurationError, InputError, JobFailedError
from skllm_ray.llm.submissions import (
    GracePeriod,
    OutcomeUnknownError,
    RefusedError,
    Submission,
    recover,
    refresh,
    submit,
)
from skllm_ray.llm.submissions.stores import open_store

QUICK = GracePeriod(grace_s=0.2, look_every_s=0.01)
STEPS = ["start", "intent", "looked", "uploaded", "posting", "posted", "recorded"]


@dataclass(frozen=True)
class BatchSpec:
    requests: str
    copy: int = 0
    delete_data: bool = False
    service: str = "shop"

    @property
    def key(self) -> str:
        return f"{self.requests}-{self.copy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob(Submission):
    kind: ClassVar[str] = "batch"
    command: ClassVar[str] = "skllm-ray batch"

    n_done: int = 0

    @property
    def title(self) -> str:
        return "a batch"

    @property
    def has_ended(self) -> bool:
        return self.state in {"completed", "deleted"}

    def seen(self, found: dict[str, Any]) -> BatchJob:
        return replace(self, id=found["id"], state=found["state"], n_done=found["done"], strikes=0)

    @classmethod
    def read_spec(cls, told: dict[str, Any]) -> BatchSpec:
        return BatchSpec(**told)


@dataclass
class Shop:
    """A service in this process. What was bought is in `sold`."""

    outcome: str = "taken"
    sold: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    n_posts: int = 0

    def check(self) -> None: ...

    def cancel(self, job_id: str) -> None: ...

    def close(self) -> None: ...

    def upload(self, data: bytes, key: str) -> str:
        self.files.append(f"{key}/{len(self.files)}")
        return self.files[-1]

    def remove(self, data: str) -> None:
        self.files.remove(data)

    def find(self, key: str) -> dict[str, Any] | None:
        return next((one for one in self.sold if one["key"] == key), None)

    def get(self, job_id: str) -> dict[str, Any] | None:
        return next((one for one in self.sold if one["id"] == job_id), None)

    def create(self, spec: BatchSpec, data: str) -> dict[str, Any]:
        self.n_posts += 1
        if self.outcome == "refused":
            raise RefusedError("the shop is closed")
        if self.outcome != "lost before":
            self.sold.append({"id": f"b{len(self.sold)}", "key": spec.key, "state": "running", "done": 0})
        if self.outcome.startswith("lost"):
            raise OutcomeUnknownError("the connection broke")
        return self.sold[-1]


class Death(BaseException):
    """The process ends here."""


WANTED = BatchJob(spec=BatchSpec("r"))


def store_in(folder: Path, kind: type[Any] = BatchJob) -> Any:
    return open_store(str(folder), kind)


@pytest.mark.parametrize("step", STEPS)
def test_whoever_comes_after_a_death_at_any_step_finds_or_buys_one_job(tmp_path, step):
    shop, store = Shop(), store_in(tmp_path)

    def die(at: str) -> None:
        if at == step:
            raise Death

    with pytest.raises(Death):
        submit(WANTED, b"data", store, shop, on_step=die)
    if step == "posting":  # nobody knows whether the POST was sent, and nobody sends another
        with pytest.raises(AmbiguousSubmission):
            submit(WANTED, b"data", store, shop, patience=QUICK)
        assert shop.n_posts == 0
        return
    job = submit(WANTED, b"data", store, shop, patience=QUICK)
    assert (job.id, job.state, shop.n_posts, len(shop.sold)) == ("b0", "running", 1, 1)
    assert submit(WANTED, b"data", store_in(tmp_path), shop).id == "b0"


@pytest.mark.parametrize(("outcome", "is_there"), [("lost before", False), ("lost after", True)])
def test_an_unknown_outcome_is_looked_for_and_never_posted_again(tmp_path, outcome, is_there):
    shop, store = Shop(outcome), store_in(tmp_path)
    for _ in range(2):
        if is_there:
            assert submit(WANTED, b"data", store, shop, patience=QUICK).id == "b0"
        else:
            with pytest.raises(AmbiguousSubmission, match="A batch was sent to shop") as raised:
                submit(WANTED, b"data", store, shop, patience=QUICK)
            assert "skllm-ray batch forget r-0" in str(raised.value)
    assert shop.n_posts == 1


def test_of_several_who_ask_at_once_one_posts_and_all_get_its_job(tmp_path):
    shop, barrier, found = Shop(), threading.Barrier(4), []

    def ask() -> None:
        def meet(step: str) -> None:
            if step == "uploaded":
                barrier.wait(10)

        found.append(submit(WANTED, b"data", store_in(tmp_path), shop, on_step=meet))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [job.id for job in found] == ["b0"] * 4
    assert (shop.n_posts, len(shop.files)) == (1, 1)  # the losers' data are gone


@pytest.mark.parametrize("tidy", [False, True])
def test_a_refusal_buys_nothing_and_the_next_asks_again(tmp_path, tidy):
    shop, store = Shop("refused"), store_in(tmp_path)
    wanted = BatchJob(spec=BatchSpec("r", delete_data=tidy))
    with pytest.raises(RefusedError, match="the shop is closed"):
        submit(wanted, b"data", store, shop)
    assert (store.read("r-0").state, len(shop.files)) == ("refused", 0 if tidy else 1)
    shop.outcome = "taken"
    job = submit(wanted, b"data", store, shop)
    assert (job.id, job.error, shop.n_posts) == ("b0", None, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"spec": {"requests": "r"}, "nonsense": 1}', b"null"])
def test_a_record_that_cannot_be_read_is_not_an_absent_one(tmp_path, monkeypatch, content):
    monkeypatch.setattr("skllm_ray.llm.submissions.store._READ_TRIES", 2)
    shop, store = Shop(), store_in(tmp_path)
    submit(WANTED, b"data", store, shop)
    sorted((tmp_path / "r-0").iterdir())[-1].write_bytes(content)
    for new in (False, True):
        with pytest.raises(ConfigurationError, match=r"batch store .* is damaged"):
            submit(WANTED, b"data", store, shop, new=new)
    assert shop.n_posts == 1


def test_a_further_job_of_the_same_content_is_bought_on_demand_alone(tmp_path):
    shop, store = Shop(), store_in(tmp_path / "a")
    assert [submit(WANTED, b"data", store, shop, new=new).id for new in (False, True, False, True)] == [
        "b0", "b1", "b1", "b2",
    ]  # fmt: skip
    emptied = store_in(tmp_path / "b")  # a store that was lost knows less than the service
    assert submit(WANTED, b"data", emptied, shop, new=True).id == "b3"
    assert sorted(emptied.keys()) == ["r-0", "r-1", "r-2", "r-3"]


def test_a_job_is_followed_until_it_ends_and_its_data_go_where_asked(tmp_path):
    shop, store = Shop(), store_in(tmp_path)
    job = submit(BatchJob(spec=BatchSpec("r", delete_data=True)), b"data", store, shop)
    shop.sold[0] |= {"done": 3}
    job = refresh(job, store, shop)
    assert (job.n_done, store.find("b0"), len(shop.files)) == (3, job, 1)
    shop.sold[0] |= {"state": "completed"}
    job = refresh(job, store, shop)
    assert (job.data, shop.files) == (None, [])


def test_a_job_that_the_service_does_not_know_any_more_was_deleted_if_it_says_so_thrice(tmp_path):
    shop, store = Shop(), store_in(tmp_path)
    job = submit(WANTED, b"data", store, shop)
    shop.sold.clear()
    states = [(job := refresh(job, store, shop)).state for _ in range(3)]
    assert states == ["running", "running", "deleted"]


def test_what_became_of_a_dead_submitter_is_told_without_a_post(tmp_path):
    shop, store = Shop(), store_in(tmp_path)
    for state in (None, "intent"):
        if state:
            store.write(WANTED)
        with pytest.raises(JobFailedError, match="died before it sent"):
            recover("r-0", store, shop, QUICK)
    store.write(replace(WANTED, version=1, state="posting"))
    with pytest.raises(AmbiguousSubmission):
        recover("r-0", store, shop, QUICK)
    shop.sold.append({"id": "b0", "key": "r-0", "state": "running", "done": 0})
    assert recover("r-0", store, shop, QUICK).id == "b0"
    assert shop.n_posts == 0


def test_messages_name_the_kind(tmp_path):
    with pytest.raises(InputError, match=r"No batch job 'x'.*`skllm-ray batch list`"):
        store_in(tmp_path).find("x")
    with pytest.raises(ConfigurationError, match=r"batch_store='/dev/null/x' cannot be used.*set_batch_store"):
        store_in(Path("/dev/null/x"))
    with pytest.raises(ConfigurationError, match="batch_store='nowhere://x' cannot be opened"):
        open_store("nowhere://x", BatchJob)

"""What a worker, and the actor of a model, tell beside their answers."""

from __future__ import annotations

import pickle

from skllm_ray.errors import warn
from skllm_ray.execution.worker_feedback import with_warnings


def test_the_answers_of_an_actor_bring_its_warnings():
    def work():
        warn("look at the template")
        warn("look at the template")
        return [1, 2]

    answers = pickle.loads(pickle.dumps(with_warnings(work)))
    assert answers == [1, 2] and answers.warnings == ("look at the template",) * 2
    assert with_warnings(lambda: [3]).warnings == ()

"""What costs money (a tuning job, a provider's batch) is submitted once: the protocol, its record and its store.

**Why.** One POST buys a tuning job or a batch, and nothing takes it back. The services know no idempotency key for it.
A POST that timed out may have been taken; the process may die between the service's answer and our note of it; two
processes may ask for the same thing at once; an SDK that tries again by itself buys twice. So the state stands in a
store outside of all processes, it is written *before* the POST, and the POST is sent once, by whoever won the right to
send it. Whoever comes later reads the store, looks at the service, and never guesses.

**How.** A record is keyed by a hash of all that is bought, and the service's job carries the key (in metadata, a label
or a file's name), so that it can be found there.

::

    1  intent      the record is stored, unless the store has it already
    2  look        for the key at the service; what is found is adopted
    3  upload      what the service is to work on
    4  posting     is stored: exactly one submitter creates this version
    5  POST        once, without retries
    6  record      the service's ID is stored

The store's only tool is exclusive creation: a record is a folder of versions, and a change is the creation of the next
version, which one writer wins (compare and swap). See `store`.

What a submitter finds in the store, and what it does:

==============  ==========================================================  =========================================
state           meaning                                                     then
==============  ==========================================================  =========================================
no record       nobody asked for it                                         writes ``intent``
``intent``      somebody was about to upload; nothing was sent              goes on with 2
``refused``     the service said no: nothing was bought                     goes on with 2
``forgotten``   a person said that nothing was bought                       goes on with 2
``posting``     the POST may have been sent                                 never sends: looks for the key at the
                                                                            service until the grace period has passed
any other       the service's own state; the record has its ID              returns the job
not readable    damaged, or not whole: it may tell of something paid for    raises ``ConfigurationError``
==============  ==========================================================  =========================================

What comes of the POST, and what is told:

=======================================  ==============  ============================================================
outcome                                  state           the user gets
=======================================  ==============  ============================================================
an answer with an ID                     the service's   the job
a refusal (4xx but 408 and 409)          ``refused``     `RefusedError`; what was uploaded is removed where asked
no answer, 408, 409, 5xx, or no ID       ``posting``     the job if it appears at the service in time, else
                                                         `AmbiguousSubmission` with the two commands that settle it
=======================================  ==============  ============================================================

**Another kind**, such as a provider's batch: a frozen spec (`Purchase`), a record (a subclass of `Submission`) and a
service (`Service`). The protocol and the stores are these.
"""

from skllm_ray.llm.submissions.record import BEFORE_POST, Purchase, Submission
from skllm_ray.llm.submissions.store import SubmissionStore
from skllm_ray.llm.submissions.submit import (
    GracePeriod,
    OutcomeUnknownError,
    RefusedError,
    Service,
    recover,
    refresh,
    submit,
)

__all__ = [
    "BEFORE_POST",
    "GracePeriod",
    "OutcomeUnknownError",
    "Purchase",
    "RefusedError",
    "Service",
    "Submission",
    "SubmissionStore",
    "recover",
    "refresh",
    "submit",
]

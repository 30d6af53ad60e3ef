"""Rows delivered by provider batches: where that sits in a job, and why it is safe.

**Where.** A unit's part is written from its journal, wherever the answers came from. So a delivery by batch is no other
way to write parts: it fills the journals first, and then the ordinary way goes over the units and finds all answered.

::

    gather    each unit, on a worker      asks nothing; what no journal or cache holds goes into the output's queue
    order     the driver                  lines of the queue become a file, the file a batch: bought once
    await     the driver                  looks at the batches, at a slower and slower pace
    collect   the driver                  the results' lines become lines of the units' journals
    gather    again                       for the plan's next step, and for the lines that did not run
    do        each unit, on a worker      as without batches: what is still without an answer is asked directly

Gathering runs a unit's plan with backends that write lines in place of asking (`gather.QueuedBackend`), so the requests
are those of the direct way, made by the same code. Steps whose models have no batches, such as a local one, are asked
while gathering. A request that this worker has seen no answer to yet is asked directly, so that what a server refuses
is learnt from one request and not from 50,000.

**A line's name** is ``unit.hash.form``: the unit, the request's key in the journal, and how its answer is read. Nothing
else is needed to take an answer home, so any driver can.

**Who.** The driver; in a cluster, when it is away, a watcher that does the same (`skllm_ray.batch.job.watching`).

**Once.** An order is a record of `skllm_ray.llm.submissions` in the output's folder; the output's lock keeps others
away. Before the POST, what every line may cost is written into the journals as an attempt of the order's own,
``b<key>``. So live batches count as spent in every ledger, of this run and of later ones, and the budget stays hard.

=====================================  ==================================================================
A driver, or a watcher, dies           The next one
=====================================  ==================================================================
before the POST was announced          finds no record, or an intent: looks for the key at the provider, takes the
                                       intents out of the journals, and gathers anew
when the POST may have been sent       looks for the key at the provider until the grace period is over, then stops
                                       with `AmbiguousSubmission`; nothing is sent twice
while the batch is live                goes on looking at it
while it collects                      collects anew: the same lines go into files of the same names
when it has collected                  sees that in the record, and removes the provider's files
=====================================  ==================================================================

**What becomes of a line** (`collect`):

==============================  =================  ==================================================
result                          journal            then
==============================  =================  ==================================================
an answer                       ``k``, its price   the row's
a failure for good              ``e``, its price   the row's error
a failure that may pass         ``s``, its price   gathered again
expired, cancelled: not run     ``s``, nothing     gathered again
unreadable                      ``s``, the most    gathered again; it may have been paid for
nothing, and not known unrun    ``e``, the most    the row's error: it may have been paid for
a second one, or nobody's       nothing            counted and told
==============================  =================  ==================================================

After three tries a request is left to the direct way. No unit asks directly while a batch may still bring its answer:
a run without batches on an output with live ones is refused.
"""

"""The limit that all processes of a cluster share: client, limiter, and the messages between them.

**Why it is as it is.** A server counts the requests and tokens of an account in every window of a minute, and answers
429 to all of its users when one of them takes too much. Many processes ask at once, and any of them may die at any
moment. A limit in each process would let their sum exceed the quota; a question to one place before each request would
cost a round trip for each. So requests and tokens are *leased*. A process asks for many permits in one report and has
a few seconds to use them. A lease counts in full from the moment it is granted until its holder reports what was really
used, and what was used counts for a whole window after that. What nobody reports counts as used for that long. So the
sum stays within the quota, whichever process dies: a crash makes the others wait, and takes nothing too much.

The limiter keeps nothing on disk. If it dies, a new one starts empty with another epoch, and every holder tells it what
it used in the last window and what it has in flight. A holder gets no permit before it has told that, and the pace of
the first permits alone keeps them within the quota.

=============  =====================================  =============================================================
Part           Where                                  What it does
=============  =====================================  =============================================================
``Gate``       :mod:`.client`                         Lets one open backend's requests wait; sends a report.
``Permit``     :mod:`.permits`                        The right to send one request, and what came of it.
``Quotas``     :mod:`.limiter`                        Takes reports and answers with grants. Pure: no Ray, no clock.
``Bucket``     :mod:`.bucket`, :mod:`.meter`          What shares a quota: an endpoint, an account and a model.
the messages   :mod:`.messages`                       Pure data. All times in them are ages, since clocks differ.
the limiter    :mod:`.installed`                      Whom this process asks: its own, or the cluster's actor.
=============  =====================================  =============================================================

======================================  ===========================================================================
Message                                 Effect
======================================  ===========================================================================
``Report.number``, a second time        The same grant again: a report that was sent twice counts once.
``Report.limit``                        The lowest that any living holder declares is in force for all.
``Report.wanted``                       A lease for the first few, if window, pace and concurrency allow.
``Report.released``                     The lease shrinks; the real use counts for 60 s.
no report on a lease                    It counts in full for 64 s from its grant: 3 s to use it, 1 s on the way, 60 s.
``Report.unleased``                     Sent before anyone declared a limit; counts while it is in flight.
``Report.external``                     The server's headers say that less is left: the difference counts as used.
``Report.refusals``                     The bucket pauses for all, once for all that was sent before the pause. An
                                        undeclared concurrency halves.
``Report.absent``                       The server was there and is not: one request at a time looks for it.
``Report.served``                       The next pause starts small again; all may ask a server that was not there.
``Report.done``, ``latency_s``          An undeclared concurrency grows, if it is in full use and answers stay quick.
``Report.ended``                        The call sends nothing more, in no process.
``Report.past``, ``known``              A new limiter learns what the old one knew.
no report for 10 s                      It asks no more. Where the concurrency is declared, what it has in flight counts
                                        until its requests' deadline, or until its process is known to be dead.
``Grant.epoch``, another than before    The holder reports again, with ``past`` and ``known``.
``Grant.lease``, ``permits``            So many of the wanted requests may be sent, within 3 s from the asking.
``Grant.concurrency``                   The holder's share, valid for 5 s; without a new grant it sends nothing more.
``Grant.paused_s``                      Nothing is sent; rows for which the pause is too long fail at once.
``Grant.wait_s``                        When to ask again.
``Grant.limit``                         The limit in force; with a quota in it nothing is sent without a lease.
``Grant.served_s``                      Whether the server answers others: so a failing row knows if it fails alone.
``Grant.ended``                         The holder's runs of these calls end.
======================================  ===========================================================================
"""

"""What stands in a job's output: parts (which `batch/job/worker.py` writes), the journal, the lock, the manifest.

A job may die at any line, and every answer costs money. Three promises follow, and the files here keep them,
with the budget (``batch/job/budget.py``).

1. *Nothing is paid for twice.* Answers that arrive one by one are in the unit's journal after 64 of them or after two
   seconds. A run that goes on takes them from there. A part, once written, is not asked for again, but for its failed
   rows with ``retry_errors``.
2. *The budget is not passed.* Before a request is sent, the most that it can cost is set aside: no tokenizer makes more
   tokens than a text has bytes, and the answer has a bound. What is set aside and what is spent are together never more
   than the budget. A server that takes more than was set aside for a request ends the job.
3. *What is not known counts as spent.* A request whose worker died, or whose answer was lost, may have been paid for.
   So may one whose answer tells no tokens. It counts at the most that it can cost, in this run and in every later one.

The order of the steps makes this safe. A worker sets the money aside (*reserve*), writes down what it is about to ask
and what that may cost (*intend*), and asks whether the money is still set aside (*confirm*). Only then does it send.
Between any two of these steps the worker, the ledger's process or the whole job may die:

- The worker dies after *intend*: the journal tells of requests without an end, which count as spent.
- The ledger's process dies: another ledger is made from the parts and journals. It may have read them before *intend*
  was written. So it does not know the reservation, *confirm* fails, and nothing was sent.
- Both the part and the journal of a unit are there, since the worker died between writing one and deleting the other:
  the part names the attempts that it has counted, and their lines in the journal are passed over.

A ledger is a plain object under a lock, in one process for all workers. It is never written to a file: files that
change need a lock that works on every object store, and the journals tell the same. A journal is a folder of small
files, each written whole and never changed, because object stores can do that.

What a worker tells the ledger (``batch.job.budget.Ledger``):

=============  =====================================  ==========================================================
Message        When                                   Effect
=============  =====================================  ==========================================================
``reserve``    before requests are written down       Sets aside the most that some of the next requests cost, and
                                                      returns how many. If too little is left, the worker waits
                                                      while others hold money; else the job ends with "budget".
                                                      At first a worker may send one request at a time, until a
                                                      price was seen.
``confirm``    when they are written down             True where the money is still set aside; else the worker
                                                      writes that they cost nothing, and reserves anew.
``settle``     when all of them have an end           What was set aside becomes what was spent: the price of
                                                      answers, and the most for those whose price nobody told.
``forget``     the driver has seen the worker die     What it had set aside for the unit becomes spent.
``report``     once a second, and at the unit's end   Adds counts for the progress display. Where nearly all rows
                                                      fail, it tells the job to stop.
``wait_for``   a server does not answer               The progress display shows why the worker waits.
``stop``       Ctrl-C, or the job must end            Every later ``reserve`` is refused; nothing new is sent.
=============  =====================================  ==========================================================

What stands in a line of a journal (``journal.Journal``):

=============  =====================================  ==========================================================
Line           When                                   Effect on a later run
=============  =====================================  ==========================================================
``i``          about to ask                           Without one of the lines below, the most counts as spent.
``k``          an answer                              It is taken over, and counts with its own price; where that is
                                                      not known, the most still counts. With ``f`` it is a copy for
                                                      another unit, and counts nothing.
``e``          a failure for good, of a batch         The row has failed so; it counts with its own price.
``s``          an end without a good answer           What it cost, and may have cost, counts; it is asked again.
=============  =====================================  ==========================================================

What happens to a unit:

==================================  ==================================  =========================================
Event                               Part                                Journal
==================================  ==================================  =========================================
it is done                          written whole, with what it cost    deleted
it is stopped, or its worker dies   none                                stays; the next attempt begins with it
failed rows are asked again         replaced; costs are added           a new one; deleted at the end
its part is lost or damaged         done again                          what it had cost stays in the log of parts
a limit cuts it in two              one for each                        divided; costs go to the first
another run takes the output over   the fence refuses to write          left to the other run
==================================  ==================================  =========================================
"""

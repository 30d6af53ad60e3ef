"""How a batch job stands after a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from skllm_ray.batch.output.progress import Progress


@dataclass(frozen=True)
class JobResult:
    """How a job stands after a run.

    Attributes
    ----------
    output : str
        Where the parts are.
    rows_total : int
        Rows in the input, as far as its files can be read.
    rows_done : int
        Rows in the parts, those of earlier runs among them.
    errors : dict of str to int
        Failed rows in the parts, by kind.
    unreadable : dict of str to str
        Files or units that could not be read or done, with the reason.
    stopped : str
        Why the run ended before all was done; empty if it did not.
    total : Progress
        Counts of the whole job, earlier runs included.
    this_run : Progress
        Counts of this run alone.
    unknown_usd : float
        The most that requests cost whose answers never arrived, or told no tokens; counted against a budget.
    set_aside_usd : float
        What batches that are still at the provider may cost; counted against a budget.
    delivered : str
        How much came by batches, and what that and the rest cost; empty where nothing did.
    seconds : float
        How long this run took.
    wanted : int
        Rows that this run was to bring to an end: all, or the limit.
    pending : Progress
        What was paid for rows that are in no part yet. It is a part of `total`, and is not paid for again.
    out_of_budget : bool
        Whether the run ended because the budget does not cover what remains.
    reasons : dict of str to str
        Why the first failed row of each kind failed, in the parts.
    in_vain : bool
        Whether the run ended because nearly all rows failed.
    promise : dict of str to str
        Of a job with a fast and a strong model: what is promised, how many fast labels were kept, and the audit.
    alarm : bool
        Whether the audit found that more labels differ than was promised.
    fatal : bool
        Whether the run ended for a reason that every row shares, such as a wrong key or a model that does not load.
    signal : int
        The signal that interrupted the run, such as 15 (SIGTERM); 0 where none did.
    """

    output: str
    rows_total: int
    rows_done: int
    errors: dict[str, int]
    unreadable: dict[str, str]
    stopped: str
    total: Progress
    this_run: Progress
    unknown_usd: float
    seconds: float
    wanted: int
    pending: Progress = field(default_factory=Progress)
    out_of_budget: bool = False
    reasons: dict[str, str] = field(default_factory=dict)
    in_vain: bool = False
    signal: int = 0
    set_aside_usd: float = 0.0
    delivered: str = ""
    promise: dict[str, str] = field(default_factory=dict)
    alarm: bool = False
    fatal: bool = False

    @property
    def complete(self) -> bool:
        """Whether every row that was wanted is in a part, with a result or with an error."""
        return not self.unreadable and self.rows_done >= self.wanted

    @property
    def rows_failed(self) -> int:
        """Rows whose part has an error; missing texts among them."""
        return sum(self.errors.values())

    @property
    def mostly_failed(self) -> bool:
        """Whether more than half of the rows with a text failed, or the run ended because nearly all did."""
        missing = self.errors.get("missing_text", 0)
        return self.in_vain or 2 * (self.rows_failed - missing) > self.rows_done - missing

    @property
    def next_step(self) -> str:
        """What to do next; empty where all is done."""
        if self.out_of_budget:
            left = self.wanted - self.rows_done
            each = self.total.cost_usd / max(1, self.total.asked)
            about = max(0, left - self.pending.asked) * each
            told = f", for about {about:,.4f} USD more at what the others cost" if about else ""
            return f"raise --budget-usd: {left:,} rows remain{told}"
        if self.fatal:
            return "mend the cause, then run the same command again"
        if self.in_vain:
            return "mend the cause, then run the same command again (--keep-going asks all rows whatever comes of it)"
        if not self.complete:
            return "run the same command again"
        if self.mostly_failed:
            return "mend the cause, then run the same command with --retry-errors"
        return "run it without --limit for the other rows" if self.rows_done < self.rows_total else ""

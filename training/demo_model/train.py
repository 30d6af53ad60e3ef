"""Train the demo model and write it as GGUF.

Run it as ``python -m training.demo_model.train --out skllm_ray/llm/gpt/clients/llama_cpp/demo/demo.gguf``.
"""

from __future__ import annotations

import logging
import math
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor, nn

from training.demo_model.aspects import ASPECTS
from training.demo_model.export import write_gguf
from training.demo_model.generator import Example, Task, corrupt, draw_example, draw_task
from training.demo_model.model import ModelConfig, TinyLlama
from training.demo_model.reviews import SENTIMENTS
from training.demo_model.tokens import END, render_answer, render_prompt, train_tokenizer
from training.demo_model.topics import TOPICS

log = logging.getLogger("training.demo_model")

KINDS = ("sentiment", "topic", "aspects")
# One optimizer step takes one prefix (label list, order, limit) of each of these.
STEP = ("sentiment", "topic", "aspects", "sentiment", "aspects")
# And it reads bare texts of these.
READ = ("sentiment", "sentiment", "topic", "sentiment", "aspects")
IGNORED = -100
# Rows of like length that are computed together, within one prefix.
GROUPS = 2
# The share of a text's tokens that are replaced with random ones.
NOISE = 0.03
# The share of training that only reads bare texts, and the share that shows labels as they are.
BARE, PLAIN = 0.25, 0.4
# What stands between a text and its answer.
CLOSE = f"\n```{END}<|assistant|>"


@dataclass(frozen=True)
class Plan:
    """What to train and for how long."""

    out: Path
    keep: Path | None
    start: Path | None
    steps: int
    minutes: float
    batch: int
    seed: int
    rate: float
    processes: int


def learn_tokenizer(rng: random.Random, vocab_size: int, texts: int) -> Tokenizer:
    """Learn the vocabulary from generated prompts and texts."""
    corpus = []
    for _ in range(texts):
        task = draw_task(rng, rng.choice(READ))
        corpus.append(draw_example(rng, task).text)
    for _ in range(texts // 20):
        task = draw_task(rng, rng.choice(KINDS))
        corpus.append(render_prompt("", task.labels, task.max_cats).replace("<|", " ").replace("|>", " "))
    return train_tokenizer(corpus, vocab_size)


def shared_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all `rows` share."""
    first, last = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


class Helpers(nn.Module):
    """Heads that training needs and throws away: they tell what a text means from the model's hidden states.

    One reads the state before the answer, the other the mean over the text. So the model learns to read before it can
    copy labels, and its pooled states serve as embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = {"sentiment": SENTIMENTS, "topic": TOPICS, "aspects": ASPECTS}
        self.before = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in self.names.items()})
        self.pooled = nn.ModuleDict({kind: nn.Linear(width, len(names)) for kind, names in self.names.items()})

    def loss(self, kind: str, before: Tensor, pooled: Tensor, examples: Sequence[Example]) -> Tensor:
        """Return both heads' summed loss."""
        means = torch.tensor([[float(name in item.meaning) for name in self.names[kind]] for item in examples])
        told = self.before[kind](before), self.pooled[kind](pooled)
        if kind == "aspects":
            return sum(F.binary_cross_entropy_with_logits(logits, means, reduction="sum") for logits in told)
        return sum(F.cross_entropy(logits, means, reduction="sum") for logits in told)


def reading_loss(
    model: TinyLlama, helpers: Helpers, tokenizer: Tokenizer, task: Task, examples: Sequence[Example], noise: float
) -> Tensor:
    """Return the helpers' loss on the bare texts, which costs a third of what whole prompts do."""
    rows = [item.ids for item in tokenizer.encode_batch([example.text + CLOSE for example in examples])]
    close = len(tokenizer.encode(CLOSE).ids)
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    sizes = torch.tensor([len(row) for row in rows])
    text = torch.arange(length) < (sizes - close)[:, None]
    random_ids = torch.randint(300, tokenizer.get_vocab_size(), tokens.shape)
    tokens = torch.where(text & (torch.rand(tokens.shape) < noise), random_ids, tokens)
    hidden, _ = model(tokens)
    pooled = (hidden * text[..., None]).sum(1) / text.sum(1, keepdim=True).clamp(min=1)
    before = hidden[torch.arange(len(rows)), sizes - 1]
    return helpers.loss(task.kind, before, pooled, examples) / len(rows)


def batch_loss(
    model: TinyLlama,
    helpers: Helpers,
    tokenizer: Tokenizer,
    task: Task,
    examples: Sequence[Example],
    rng: random.Random,
    noise: float,
) -> tuple[Tensor, float]:
    """Return the loss per example, and the share of answers predicted wholly.

    The loss is that of the answer's tokens and the helpers'.
    """
    prompts = [render_prompt(example.text, task.labels, task.max_cats) for example in examples]
    answers = [render_answer(example.answer) + END for example in examples]
    encoded = tokenizer.encode_batch([p + a for p, a in zip(prompts, answers, strict=True)])
    rows = [item.ids for item in encoded]
    start = shared_prefix(rows)
    answer_at = [len(row) - row[::-1].index(tokenizer.token_to_id("<|assistant|>")) for row in rows]
    tail = len(tokenizer.encode(END + "\n```").ids) + 1
    noisy = []
    for row, position in zip(rows, answer_at, strict=True):
        text = slice(start, max(start, position - tail))
        noisy.append([*row[:start], *corrupt(row[text], rng, noise, tokenizer.get_vocab_size()), *row[text.stop :]])
    _, past = model(torch.tensor([rows[0][:start]]))
    # The prefix is computed once; the rest of the rows in groups of like length, to spare padding.
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    loss, right = torch.zeros(()), 0
    size = -(-len(order) // GROUPS)
    for group in (order[at : at + size] for at in range(0, len(order), size)):
        length = len(rows[group[-1]]) - start
        tokens = torch.zeros(len(group), length, dtype=torch.long)
        targets = torch.full((len(group), length), IGNORED)
        for line, index in enumerate(group):
            tokens[line, : len(rows[index]) - start] = torch.tensor(noisy[index][start:])
            answer = slice(answer_at[index] - 1 - start, len(rows[index]) - 1 - start)
            targets[line, answer] = torch.tensor(rows[index][answer_at[index] :])
        hidden, _ = model(tokens, past)
        wanted = targets != IGNORED
        logits = model.logits(hidden[wanted])
        loss = loss + F.cross_entropy(logits, targets[wanted], reduction="sum")
        ends = torch.tensor([answer_at[index] - 1 - start for index in group])
        text = (torch.arange(length) < (ends + 1 - tail)[:, None]).float()
        pooled = (hidden * text[..., None]).sum(1) / text.sum(1, keepdim=True).clamp(min=1)
        before = hidden[torch.arange(len(group)), ends]
        loss = loss + 0.5 * helpers.loss(task.kind, before, pooled, [examples[index] for index in group])
        hits = torch.ones(wanted.shape, dtype=torch.bool)
        hits[wanted] = logits.argmax(-1) == targets[wanted]
        right += int(hits.all(1).sum())
    return loss / len(rows), right / len(rows)


def average(parameters: Sequence[nn.Parameter], extra: float) -> float:
    """Average the gradients over all processes; return `extra` as the first process has it."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None] + [torch.tensor([0.0])])
    if dist.get_rank() == 0:
        flat[-1] = extra
    dist.all_reduce(flat)
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.grad.numel()].view_as(p.grad)).div_(dist.get_world_size())
            at += p.grad.numel()
    return float(flat[-1])


def work(rank: int, plan: Plan, tokenizer_json: str, meeting: str) -> None:
    """Train in one process of `plan.processes`; the first one writes the result.

    Processes of one thread each, with averaged gradients, are twice as fast as one process of several threads: the
    matrices are small.
    """
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.processes)
    torch.set_num_threads(1)
    torch.manual_seed(plan.seed)
    tokenizer = Tokenizer.from_str(tokenizer_json)
    model = TinyLlama(ModelConfig(tokenizer.get_vocab_size()))
    helpers = Helpers(model.config.width)
    bare, plain = (0.0, 0.0) if plan.start else (BARE, PLAIN)
    if plan.start:
        model.load_state_dict(torch.load(plan.start, weights_only=False)["state"])
    size = sum(p.numel() for p in model.parameters())
    log.info("vocabulary %d, parameters %d", tokenizer.get_vocab_size(), size)
    torch.manual_seed(plan.seed + 1000 * rank)
    rng = random.Random(plan.seed + 1000 * rank)
    parameters = [*model.parameters(), *helpers.parameters()]
    matrices = {id(p) for block in model.blocks for p in block.parameters() if p.dim() == 2}
    others = [p for p in parameters if id(p) not in matrices]
    # Muon for the blocks' matrices, scaled to AdamW's step so that one rate serves both.
    optimizers = [
        torch.optim.Muon([p for p in parameters if id(p) in matrices], plan.rate, 0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in others if p.dim() == 2], "weight_decay": 0.05},
                {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
            ],
            lr=plan.rate,
            betas=(0.9, 0.98),
        ),
    ]
    seen: dict[str, list[float]] = {kind: [] for kind in KINDS}
    began, progress, step = time.monotonic(), 0.0, 0
    while progress < 1:
        step += 1
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                decay = 0.5 * (1 + math.cos(math.pi * progress))
                group["lr"] = plan.rate * min(1.0, step / 50) * max(0.02, decay)
            optimizer.zero_grad(set_to_none=True)
        noise = NOISE * min(1.0, step / 500)
        for kind in READ:
            task = draw_task(rng, kind)
            examples = [draw_example(rng, task) for _ in range(plan.batch * (3 if progress < bare else 2))]
            loss = reading_loss(model, helpers, tokenizer, task, examples, noise)
            (loss / len(READ)).backward()
        for kind in STEP if progress >= bare else ():
            task = draw_task(rng, kind, plain=progress < plain)
            examples = [draw_example(rng, task) for _ in range(plan.batch)]
            loss, right = batch_loss(model, helpers, tokenizer, task, examples, rng, noise)
            (loss / len(STEP)).backward()
            seen[kind].append(right)
        # Progress is by steps or by time, whichever is further, so that the rate always decays to its end.
        now = max(step / plan.steps, (time.monotonic() - began) / (60 * plan.minutes))
        progress = average(parameters, now)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step % 25 == 0:
            rates = ", ".join(f"{kind} {sum(v[-60:]) / len(v[-60:]):.3f}" for kind, v in seen.items() if v)
            seconds = time.monotonic() - began
            log.info("step %d, %.0f s, progress %.2f, last loss %.2f: %s", step, seconds, progress, loss.item(), rates)
        if rank == 0 and plan.keep and step % 250 == 0:
            torch.save({"config": model.config, "state": model.state_dict(), "tokenizer": tokenizer_json}, plan.keep)
    if rank == 0:
        model.eval()
        write_gguf(model, tokenizer, plan.out)
        if plan.keep:
            torch.save({"config": model.config, "state": model.state_dict(), "tokenizer": tokenizer_json}, plan.keep)
        log.info("wrote %s after %.1f min", plan.out, (time.monotonic() - began) / 60)
    dist.destroy_process_group()


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The GGUF file to write.")
@click.option("--keep", type=click.Path(path_type=Path), help="Also write the PyTorch weights, to this file.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Go on from weights written by --keep.")
@click.option("--steps", default=1200, show_default=True)
@click.option("--minutes", default=60.0, show_default=True, help="The longest it may take; the rate decays in time.")
@click.option("--batch", default=12, show_default=True, help="Texts per prefix and process.")
@click.option("--seed", default=1, show_default=True)
@click.option("--vocab-size", default=6144, show_default=True)
@click.option("--rate", default=3e-3, show_default=True)
@click.option("--processes", default=2, show_default=True)
def main(vocab_size: int, **options: Any) -> None:
    """Train the demo model and write it as GGUF."""
    plan = Plan(**options)
    if plan.start:
        tokenizer = Tokenizer.from_str(torch.load(plan.start, weights_only=False)["tokenizer"])
    else:
        tokenizer = learn_tokenizer(random.Random(plan.seed), vocab_size, 60_000)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (plan, tokenizer.to_str(), str(Path(folder) / "meeting"))
        torch.multiprocessing.spawn(work, arguments, nprocs=plan.processes)


if __name__ == "__main__":
    main()

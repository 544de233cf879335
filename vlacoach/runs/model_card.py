"""The model card of what a run has trained: what it is, how it was measured, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlacoach.runs.config import TrainConfig
from vlacoach.runs.indices import format_indices
from vlacoach.runs.results import Comparison, EvaluationResult
from vlacoach.runs.yaml_io import dump_config

TAGS = ("robotics", "vla", "libero", "reinforcement-learning", "grpo", "vlacoach")


@dataclass(frozen=True)
class CardFacts:
    """What a card tells.

    Attributes:
        repo: Name on the Hub, ``user/name``.
        base: What was trained: a Hub id, or the name of a built-in policy.
        base_on_hub: Whether ``base`` is a Hub id.
        revision: Commit of the base, or None.
        adapter: Whether only an adapter was trained, and not all weights.
        step: Updates that it was trained for.
        config: The run's configuration, without what only concerns the machine it ran on.
        comparisons: Split to the measurement before and after; empty if this checkpoint was not measured.
        datasets: Hub ids of data sets that the base was trained on.
    """

    repo: str
    base: str
    base_on_hub: bool
    revision: str | None
    adapter: bool
    step: int
    config: TrainConfig
    comparisons: Mapping[str, Comparison]
    datasets: Sequence[str] = ()


def model_card(facts: CardFacts) -> str:
    """The text of ``README.md``, with the Hub's metadata at its head."""
    from huggingface_hub import ModelCardData

    tags = [*TAGS, "lora"] if facts.adapter else list(TAGS)
    data = ModelCardData(
        library_name="peft" if facts.adapter else "vlacoach",
        base_model=facts.base if facts.base_on_hub else None,
        pipeline_tag="robotics",
        tags=tags,
        datasets=list(facts.datasets) or None,
        model_name=facts.repo.partition("/")[2] if facts.comparisons else None,
        eval_results=[_eval_result(split, found.after) for split, found in facts.comparisons.items()] or None,
    )
    parts = (_summary(facts), _results(facts), _usage(facts), _settings(facts))
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _eval_result(split: str, result: EvaluationResult) -> Any:
    from huggingface_hub import EvalResult

    interval = result.interval
    return EvalResult(
        task_type="robotics",
        task_name="Robot manipulation",
        dataset_type=result.suite,
        dataset_name=f"LIBERO, suite {result.suite}, {split} initial states",
        dataset_split=split,
        metric_type="success_rate",
        metric_name=f"Success rate ({result.successes} of {result.episodes} episodes)",
        metric_value=round(result.rate, 4),
        metric_args={
            "episodes": result.episodes,
            "low": round(interval.low, 4),
            "high": round(interval.high, 4),
            "interval": "Wilson 95 %",
        },
    )


def _summary(facts: CardFacts) -> str:
    env, kind = facts.config.env, "A LoRA adapter for" if facts.adapter else "All weights of"
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_on_hub else f"`{facts.base}`"
    at = f" at revision `{facts.revision}`" if facts.revision else ""
    updates = "1 update" if facts.step == 1 else f"{facts.step} updates"
    tasks = "all tasks" if env.tasks is None else f"tasks {format_indices(env.tasks)}"
    return (
        f"# {facts.repo.partition('/')[2]}\n\n"
        f"{kind} {base}{at}, trained for {updates} of GRPO in simulation: LIBERO's suite `{env.suite}`, "
        f"{tasks}, initial states {format_indices(env.states)}, reward `{facts.config.reward.name}`."
    )


def _results(facts: CardFacts) -> str:
    if not facts.comparisons:
        return "## Success\n\nThis checkpoint was not measured by the run that made it."
    rows = ["| initial states | before | after | difference |", "|---|---|---|---|"]
    for split, found in facts.comparisons.items():
        gain, low, high = (100 * value for value in _difference(found))
        rows.append(
            f"| {split} | {_rate(found.before)} | {_rate(found.after)} | {gain:+.1f} ({low:+.1f} to {high:+.1f}) |"
        )
    per_task = ["| task | initial states | before | after |", "|---|---|---|---|"]
    for split, found in facts.comparisons.items():
        for before, after in zip(found.before.tasks, found.after.tasks, strict=True):
            counts = [f"{task.successes}/{task.episodes}" for task in (before, after)]
            per_task.append(f"| {after.task}: {after.name} | {split} | {counts[0]} | {counts[1]} |")
    return "\n\n".join(["## Success", "\n".join(rows), _protocol(facts.comparisons), "\n".join(per_task)])


def _protocol(comparisons: Mapping[str, Comparison]) -> str:
    result = next(iter(comparisons.values())).after
    settings = result.settings
    steps = settings.get("env.max_steps")
    limit = f"at most {steps} control steps, " if steps else ""
    states = "; ".join(
        f"{split}: {format_indices(sorted({state for task in found.after.tasks for state in task.states}))}"
        for split, found in comparisons.items()
    )
    named = f"protocol {result.protocol}, " if result.protocol else ""
    return (
        "In percent, with Wilson's 95 % interval, and Newcombe's of the paired difference. Measured by vlacoach in "
        f"LIBERO: {named}{limit}temperature {result.temperature:g}, seed {format_indices(result.seeds)}, initial "
        f"states {states}. Episodes before and after start alike."
    )


def _rate(result: EvaluationResult) -> str:
    low, high = (100 * bound for bound in (result.interval.low, result.interval.high))
    return f"{100 * result.rate:.1f} ({low:.1f} to {high:.1f}), n = {result.episodes}"


def _difference(found: Comparison) -> tuple[float, float, float]:
    overall = found.overall
    return overall.difference, overall.interval.low, overall.interval.high


def _usage(facts: CardFacts) -> str:
    policy = facts.config.policy
    quantize = f', quantize="{policy.quantize}"' if policy.quantize in ("nf4", "int8") else ""
    flag = f" --quantize {policy.quantize}" if quantize else ""
    return (
        "## How to use it\n\n"
        "```python\nimport vlacoach\n\n"
        f'policy = vlacoach.load_policy("{facts.repo}"{quantize})\n```\n\n'
        "```bash\n"
        f"vlacoach eval --policy {facts.repo} --suite {facts.config.env.suite}{flag}\n"
        f"{_further(facts)}```"
    )


def _further(facts: CardFacts) -> str:
    if not facts.adapter:
        return f"vlacoach train --policy {facts.repo} --suite {facts.config.env.suite}\n"
    return f"hf download {facts.repo} --local-dir adapter  # and to train it further:\n" + (
        f"vlacoach train --policy {facts.base} --set policy.adapter=adapter --suite {facts.config.env.suite}\n"
    )


def _settings(facts: CardFacts) -> str:
    text = dump_config(facts.config, comments=False).strip()
    return f"## Settings\n\n<details><summary>Every setting of the run</summary>\n\n```yaml\n{text}\n```\n\n</details>"

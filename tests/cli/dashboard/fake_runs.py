"""Run folders for the dashboard's tests, written by the project's own writer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vlacoach.agents.video import write_video
from vlacoach.runs import constants as names
from vlacoach.runs.config import TrainConfig
from vlacoach.runs.files import replace_text
from vlacoach.runs.folder import RunFolder

EPOCH = 1_790_000_000.0
"""When the runs of these tests began: a fixed moment, so that screens are equal every day."""


def make_run(
    root: Path, name: str = "demo", updates: int = 12, status: str = names.STATUS_FINISHED, **grpo: Any
) -> Path:
    """A run of 40 updates of which some are done: two tasks, 16 episodes an update, one of which has a video."""
    config = TrainConfig(name=name, env={"suite": "libero_goal", "tasks": "1,8"}, grpo={"updates": 40, **grpo})
    with RunFolder.create(root, name, config, {"grpo.updates": "--updates"}) as run:
        facts = {"host": "somewhere", "pid": 1, "platform": "Linux", "python": "3.11", "versions": {"torch": "2"}}
        tasks = {"1": "put the bowl on the stove", "8": "put the bowl on the plate"}
        run.update_info(created=EPOCH, tasks=tasks, argv=["vlacoach", "train"], **facts)
        run.set_status(names.STATUS_RUNNING)
        rng = np.random.default_rng(0)
        evaluation(run, 0, 8)
        for step in range(1, updates + 1):
            update(run, step, updates, rng)
        if updates:
            evaluation(run, updates, 15)
        for second in range(20):
            run.writer(names.SYSTEM_FILE).write(
                {
                    "time": EPOCH + 5 * second,
                    "system/rss": 2e9 + 1e7 * second,
                    "system/cpu": 150.0,
                    "system/processes": 3,
                }
            )
        run.log_event("scorer", scorer="siglip-t", auroc=0.91, low=0.85, high=0.95)
        (run.path / names.LOG_FILE).write_text("".join(
            f"2026-11-22 10:00:{second:02d} {text}\n"
            for second, text in enumerate(("update 1 done", "WARNING the reward is blind", "ERROR the disk is full"))
        ))  # fmt: skip
        run.progress("rollout", 5, 16)
        run.set_status(status)
        path = run.path
    settled = path.with_name(f"20260921_100000_{name}_0001")
    os.rename(path, settled)
    (root / names.LATEST_LINK).unlink()
    (root / names.LATEST_LINK).symlink_to(settled.name)
    if status not in (names.STATUS_RUNNING, names.STATUS_PAUSED):
        # Nothing may depend on today.
        info = json.loads((settled / names.RUN_FILE).read_text())
        replace_text(settled / names.RUN_FILE, json.dumps({**info, "finished": EPOCH + 500}))
    return settled


def update(run: RunFolder, step: int, updates: int, rng: np.random.Generator) -> None:
    """One update's lines."""
    run.writer(names.METRICS_FILE).write({
        "time": EPOCH + 20 * step, "step": step,
        "rollout/success": 0.5 + 0.25 * step / updates, "rollout/episodes": 16.0, "rollout/env_steps": 1600.0,
        "rollout/length": 100.0 - step, "rollout/groups": 2.0, "rollout/groups_kept": 1.0,
        "rollout/groups_all_failed": 0.0, "rollout/groups_all_succeeded": 1.0,
        "rollout/success/1": 0.25, "rollout/success/8": 0.75,
        "reward/mean": 0.6, "reward/failure_mean": 0.3, "reward/auroc": 1.0,
        "train/loss": 0.01 / step, "train/kl": 0.002, "train/entropy": 0.4 - 0.01 * step, "train/clip_fraction": 0.01,
        "train/ratio_first": 1.0, "train/gradient_norm": 0.05, "train/learning_rate": 0.002,
        "time/rollout": 8.0, "time/reward": 0.5, "time/update": 1.5, "time/total": 10.0,
    })  # fmt: skip
    run.writer(names.METRICS_FILE).write({"time": EPOCH + 20 * step, "step": step, "time/elapsed": 12.0 * step})
    video = None
    if step == updates:
        frames = [np.full((32, 32, 3), 20 + 40 * look, np.uint8) for look in range(5)]
        video = str(write_video(run.path / "videos" / f"update_{step:04d}" / "slot_000", frames).relative_to(run.path))
    for slot in range(16):
        success = slot % 8 < (2 if slot < 8 else 6)
        run.writer(names.EPISODES_FILE).write({
            "time": EPOCH + 20 * step, "step": step, "task": 1 if slot < 8 else 8, "init_state": step % 30,
            "group": slot // 8, "slot": slot, "success": success, "valid": slot != 15,
            "length": 60 + slot if success else 120, "reward": 1.0 if success else round(0.05 * slot, 2),
            **({} if success else {"distance": 10.0 + slot}),
            **({"video": video, "progress": [0.0, 0.3, 0.5, 0.8, 1.0]} if video and slot == 0 else {}),
        })  # fmt: skip


def evaluation(run: RunFolder, step: int, won: int) -> None:
    """An evaluation of 20 episodes."""
    run.writer(names.METRICS_FILE).write(
        {"time": EPOCH + 20 * step + 1, "step": step, "eval/success": won / 20, "eval/successes": won,
         "eval/episodes": 20, "eval/success/1": won / 20, "eval/success/8": won / 20}
    )  # fmt: skip

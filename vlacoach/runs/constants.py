"""Names shared by whoever writes a run folder and whoever reads it: files, statuses, metric keys."""

from __future__ import annotations

SCHEMA_VERSION = 1
"""Version of the run folder's layout; readers refuse a later one."""

# Files of a run folder.
CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
EPISODES_FILE = "episodes.jsonl"
EVENTS_FILE = "events.jsonl"
ALERTS_FILE = "alerts.jsonl"
SYSTEM_FILE = "system.jsonl"
LOG_FILE = "log.txt"
HEARTBEAT_FILE = "heartbeat"
CONTROL_FILE = "control.json"
LOCK_FILE = "lock"
WATCHING_FILE = "watching"
"""Kept fresh by whoever wants to see the robot."""
LIVE_FILE = "live.png"
"""The newest picture of one world while somebody watches."""
BASELINE_FILE = "baseline.json"
"""Evaluations before training, by split, until results.json has them too."""
RESULTS_FILE = "results.json"
SPLITS_FILE = "splits.json"
"""Initial states of each task, for training and for evaluation; run.json has its hash."""
SPLITS_HASH = "splits_hash"
"""The hash's key in run.json."""
CURVES_FILE = "learning_curve.png"
REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"
VIDEOS_FOLDER = "videos"
EVIDENCE_FOLDER = "evidence"
"""What a guard that stopped the training has kept, a folder for each time."""
LATEST_LINK = "latest"

# Inside a checkpoint.
MANIFEST_FILE = "manifest.json"
ADAPTER_FOLDER = "adapter"
POLICY_FOLDER = "policy"
"""All weights, in the place of the adapter, where the whole language model is trained."""
SCORER_FOLDER = "scorer"
TRAINING_STATE_FOLDER = "training_state"
STATE_TENSORS_FILE = "state.safetensors"
STATE_META_FILE = "state.json"
LAST_LINK = "last"
BEST_LINK = "best"

DEFAULT_ORIGIN = "default"
"""Origin of a setting that nobody set."""

# Values of ``status`` in run.json.
STATUS_CREATED = "created"
STATUS_RUNNING = "running"
STATUS_PAUSED = "paused"
STATUS_FINISHED = "finished"
STATUS_FAILED = "failed"
STATUS_INTERRUPTED = "interrupted"
STATUSES = (
    STATUS_CREATED,
    STATUS_RUNNING,
    STATUS_PAUSED,
    STATUS_FINISHED,
    STATUS_FAILED,
    STATUS_INTERRUPTED,
)

# Stages of one update, in order, as they appear in events.jsonl and in the progress display.
STAGE_ROLLOUT = "rollout"
STAGE_REWARD = "reward"
STAGE_FILTER = "filter"
STAGE_ADVANTAGE = "advantage"
STAGE_UPDATE = "update"
STAGE_CHECKPOINT = "checkpoint"
STAGE_EVALUATION = "evaluation"

# Keys that every line of metrics.jsonl has beside its metrics.
STEP = "step"
"""Updates done when the line was written (the line of update 1 has step 1; step 0 is before training)."""
TIME = "time"
"""Wall clock, seconds since the epoch."""
NONFINITE = "nonfinite"
"""List of the keys whose value was NaN or infinite and is therefore null in the line."""

# Metrics.
ROLLOUT_SUCCESS = "rollout/success"
ROLLOUT_EPISODES = "rollout/episodes"
ROLLOUT_LENGTH = "rollout/length"
ROLLOUT_ENV_STEPS = "rollout/env_steps"
ROLLOUT_GROUPS = "rollout/groups"
ROLLOUT_GROUPS_KEPT = "rollout/groups_kept"
ROLLOUT_GROUPS_FAILED = "rollout/groups_all_failed"
ROLLOUT_GROUPS_SOLVED = "rollout/groups_all_succeeded"
REWARD_MEAN = "reward/mean"
REWARD_FAILURE_MEAN = "reward/failure_mean"
REWARD_AUROC = "reward/auroc"
TRAIN_LOSS = "train/loss"
TRAIN_KL = "train/kl"
TRAIN_REFERENCE_KL = "train/reference_kl"
TRAIN_ENTROPY = "train/entropy"
TRAIN_CLIP_FRACTION = "train/clip_fraction"
TRAIN_RATIO_FIRST = "train/ratio_first"
"""Mean probability ratio at the first inner step of the update; 1 by invariant 2."""
TRAIN_GRADIENT_NORM = "train/gradient_norm"
TRAIN_LEARNING_RATE = "train/learning_rate"
EVAL_SUCCESS = "eval/success"
EVAL_SUCCESSES = "eval/successes"
EVAL_EPISODES = "eval/episodes"
EVAL_TRAIN_SUCCESS = "eval_train/success"
EVAL_TRAIN_SUCCESSES = "eval_train/successes"
EVAL_TRAIN_EPISODES = "eval_train/episodes"
TIME_PREFIX = "time/"
"""``time/<stage>`` is the stage's share of the update in seconds."""
TIME_TOTAL = "time/total"
TIME_ELAPSED = "time/elapsed"
"""Seconds of work since the run began, pauses and interruptions left out."""
BYTES_SENT = "ranks/bytes_sent"
WORKERS_REPLACED = "rollout/workers_replaced"
"""Simulator processes that died or hung since the run was started or resumed, and were replaced."""

# Keys of system.jsonl.
SYSTEM_RSS = "system/rss"
"""Memory of the trainer and its processes, in bytes; pages they share count once for each."""
SYSTEM_CPU = "system/cpu"
"""Processor time of the trainer and its processes, in percent of one core."""
SYSTEM_PROCESSES = "system/processes"
SYSTEM_FREE_MEMORY = "system/free_memory"
SYSTEM_FREE_DISK = "system/free_disk"
SYSTEM_VRAM = "system/vram"
"""Memory that torch holds on the CUDA device, in bytes."""

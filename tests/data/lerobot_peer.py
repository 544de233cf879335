"""What LeRobot itself makes of a data set: run by an interpreter that has ``lerobot``, which need not be ours.

``read FOLDER RESULT`` reads a folder by ``LeRobotDataset`` into an ``.npz`` file; ``make FOLDER`` writes one.
"""

import json
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

FPS, HORIZON = 20, 4
FRONT, WRIST = "observation.images.image", "observation.images.image2"
TASKS = ("Open the drawer", "put the bowl on the plate", "Open the drawer")


def read(folder, result):
    deltas = {"action": [step / FPS for step in range(HORIZON)], FRONT: [-1 / FPS, 0.0]}
    data = LeRobotDataset("vlacoach/test", root=folder, delta_timestamps=deltas)
    items = [data[index] for index in range(len(data))]
    arrays = {key: np.stack([item[key].numpy() for item in items]) for key in items[0] if key != "task"}
    stats = {f"stats/{key}/{name}": data.meta.stats[key][name] for key in data.meta.stats for name in ("mean", "q99")}
    facts = {
        "task": [item["task"] for item in items],
        "tasks": list(data.meta.tasks.index),
        "episodes": data.num_episodes,
        "spans": [[row["dataset_from_index"], row["dataset_to_index"]] for row in data.meta.episodes],
        "fps": data.fps,
        "videos": data.meta.video_keys,
    }
    np.savez(result, **arrays, **stats, facts=np.array(json.dumps(facts)))


def make(folder):
    rng = np.random.default_rng(0)
    features = {
        "observation.state": {"dtype": "float32", "shape": (8,), "names": [f"s{i}" for i in range(8)]},
        "action": {"dtype": "float32", "shape": (7,), "names": [f"a{i}" for i in range(7)]},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        FRONT: {"dtype": "video", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
        WRIST: {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channels"]},
    }
    data = LeRobotDataset.create("vlacoach/test", fps=FPS, features=features, root=folder, vcodec="h264")
    kept = {"state": [], "action": [], "front": [], "wrist": [], "episode": []}
    for episode, (task, length) in enumerate(zip(TASKS, (6, 5, 7), strict=True)):
        for step in range(length):
            action = rng.uniform(-0.9, 0.9, 7).astype(np.float32)
            action[6] = -1 if step < 2 else 1
            state = rng.normal(size=8).astype(np.float32)
            front = np.full((64, 64, 3), 10 + 13 * len(kept["episode"]), dtype=np.uint8)
            wrist = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            done = np.array([step == length - 1 and episode != 1])
            frame = {"observation.state": state, "action": action, "next.success": done, FRONT: front, WRIST: wrist}
            data.add_frame({**frame, "task": task})
            for key, value in zip(kept, (state, action, front, wrist, episode), strict=True):
                kept[key].append(value)
        data.save_episode()
    data.finalize()
    np.savez(f"{folder}.npz", **{key: np.stack(values) for key, values in kept.items()})


if __name__ == "__main__":
    {"read": read, "make": make}[sys.argv[1]](*sys.argv[2:])

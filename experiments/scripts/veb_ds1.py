"""What choices of veb_fewshot's networks give on held-out folds of DS1; nobody of DS2 is looked at.

    python experiments/scripts/veb_ds1.py --data DIR [--json FILE] [--seeds 0,1,2] [SETTINGS ...]

SETTINGS is a network's width, its steps of training and the networks per fold, such as 16x200x3. Gross F1 of V on the training subjects that
a network has not seen, at the best threshold there, by one lead and by two, in the causal and in the
offline context.
"""

import argparse
import json
from pathlib import Path

import torch

from metaecg.experiments.veb_base import choose_context, train_networks
from metaecg.experiments.veb_config import VebConfig
from metaecg.experiments.veb_data import prepare, splits_of

SETTINGS = ("16x700x1", "16x350x1", "16x200x1", "32x350x1", "32x200x1", "48x350x1", "16x200x3")


def held_out_f1(config: VebConfig, dataset, split, *, seed: int) -> dict[str, float]:
    """Return the gross F1 by context and leads."""
    found = train_networks(config, dataset, split, seed=seed)
    leads = {"one lead": found.logits[0], "two leads": found.logits.min(axis=0)}
    f1 = {}
    for mode in ("causal", "offline"):
        for name, logits in leads.items():
            _, held_out = choose_context(config, found.beats, found.inputs, logits, mode=mode)
            f1[f"{mode}, {name}"] = held_out["f1"]
    return f1


def configured(data: Path, setting: str) -> VebConfig:
    """Return the recipe with this width, these steps and so many networks per fold."""
    width, n_steps, n_repeats = map(int, setting.split("x"))
    train = {"n_steps": n_steps, "n_repeats": n_repeats}
    changed = {"network": {"width": width}, "train": train}
    return VebConfig(data=data, databases=["mitdb"], **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=SETTINGS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for setting in arguments.settings:
        config = configured(arguments.data, setting)
        dataset = prepare(config, None)
        (beat_split,) = splits_of(config, dataset)
        for seed in map(int, arguments.seeds.split(",")):
            f1 = held_out_f1(config, dataset, beat_split.split, seed=seed)
            rows.append({"setting": setting, "seed": seed, **f1})
            print(json.dumps(rows[-1]), flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

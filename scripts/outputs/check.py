#!/usr/bin/env python3
"""Read the files of a run with the programs they are written for, and hold every figure to logging.jsonl.

    bin/qlora sft ... --output_dir out --add_version false
    python3 scripts/outputs/check.py out        # where tensorboard and transformers are

trainer_state.json of the last checkpoint is read by transformers' TrainerState, the event files in runs/ by TensorBoard's
EventAccumulator, which keeps values in float32. Exit status 1 where a figure is missing or another.
"""
import json
import os
import struct
import sys

import tensorboard
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def float32(v):
    return struct.unpack("f", struct.pack("f", v))[0]


def main():
    run = sys.argv[1]
    with open(os.path.join(run, "logging.jsonl")) as f:
        log = [json.loads(line) for line in f]
    records, last = [r for r in log if "step" in r], log[-1]
    checkpoint = os.path.join(run, os.path.basename(last["last_model_checkpoint"]))

    state = transformers.TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
    faults, figures = [], 0
    if state.global_step != last["global_step"] or len(state.log_history) != len(records):
        faults.append(f"trainer_state.json: step {state.global_step}, {len(state.log_history)} records of {len(records)}")
    for got, want in zip(state.log_history, records):
        for key, value in got.items():
            figures += 1
            if want.get(key) != value:
                faults.append(f"trainer_state.json: step {got['step']}, {key} is {value}, not {want.get(key)}")

    events = EventAccumulator(os.path.join(run, "runs"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    shown = 0
    for r in records:
        for key, value in r.items():
            if key == "step" or not isinstance(value, (int, float)):
                continue
            if "eval_loss" in r and not key.startswith("eval_"):
                continue  # the training figures of that step have a line of their own
            tag = "eval/" + key[5:] if key.startswith("eval_") else "train/" + key
            shown += 1
            if scalars.get(tag, {}).get(r["step"]) != float32(value):
                faults.append(f"TensorBoard: step {r['step']}, {tag} is {scalars.get(tag, {}).get(r['step'])}, not {value}")
    images = [name for name in os.listdir(os.path.join(run, "images")) if name.endswith(".png")]
    if len(images) != len(scalars):
        faults.append(f"{len(images)} images of {len(scalars)} tags")

    result = {"transformers": transformers.__version__, "tensorboard": tensorboard.version.VERSION, "steps": state.global_step,
              "figures_in_trainer_state": figures, "figures_in_tensorboard": shown, "tags": sorted(scalars), "faults": faults}
    print(json.dumps(result, indent=2))
    sys.exit(1 if faults or not shown or not figures else 0)


if __name__ == "__main__":
    main()

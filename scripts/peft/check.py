#!/usr/bin/env python3
"""Load an adapter that qlora wrote with the real PEFT, and compare the mean negative log-likelihood.

    scripts/peft/rows.sh MODEL ADAPTER DATASET > rows.json      # with bin/qlora: token ids, mask, and its own nll
    python3 scripts/peft/check.py MODEL ADAPTER rows.json       # where torch, transformers and peft are

MODEL is a folder in the Hugging Face layout or a .gguf file. Float32 on the CPU, one row at a time, eager attention.
Exit status 1 where the two differ by more than 1e-5 of the value.
"""
import json
import os
import sys

import peft
import torch
import transformers


def load(model, adapter):
    where = {"pretrained_model_name_or_path": model}
    if model.endswith(".gguf"):
        where = {"pretrained_model_name_or_path": os.path.dirname(model) or ".", "gguf_file": os.path.basename(model)}
    base = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, adapter).eval()


def mean_nll(model, rows):
    total, labels = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        want = torch.tensor(row["labels"][1:])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        keep = want != -100
        nll = torch.nn.functional.cross_entropy(logits[keep], want[keep], reduction="sum")
        total, labels = total + nll.item(), labels + int(keep.sum())
    return total / labels, labels


def main():
    model_path, adapter, rows_path = sys.argv[1:]
    with open(rows_path) as f:
        given = json.load(f)
    model = load(model_path, adapter)
    nll, labels = mean_nll(model, given["rows"])
    with model.disable_adapter():
        base, _ = mean_nll(model, given["rows"])
    off = abs(nll / given["nll"] - 1)
    result = {
        "transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__,
        "label_tokens": labels, "nll_peft": nll, "nll_qlora": given["nll"], "relative_difference": off,
        "nll_peft_without_adapter": base, "holds": off <= 1e-5 and labels == given["label_tokens"] and abs(base / nll - 1) > 1e-3,
    }
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["holds"] else 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Hold qlora's NF4 checkpoints to the real bitsandbytes, both ways.

    python3 scripts/bnb/check.py [SOURCE]      # where torch, transformers and bitsandbytes are; and go

A model (SOURCE, a folder in bfloat16; else a small Qwen2 of random weights) is quantised by transformers + bitsandbytes and
by `qlora export --quant_method bnb`, both on the CPU. Every tensor of the two checkpoints must be equal to the byte, quant_state by its fields;
transformers must load ours and give the logits it gives for its own; and what qlora reads of theirs, dequantised, must be
bitsandbytes' values. Exit status 1 where one does not hold. Prints JSON for results/bnb.
"""
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile

import bitsandbytes
import numpy
import torch
import transformers
from safetensors import safe_open


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def small(folder):
    torch.manual_seed(7)
    config = transformers.Qwen2Config(
        hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=151936, max_position_embeddings=512, rope_theta=1e6, tie_word_embeddings=False)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer = os.path.join(ROOT, "testdata", "tokenizer", "qwen2.5")
    for name in os.listdir(tokenizer):
        with (gzip.open if name.endswith(".gz") else open)(os.path.join(tokenizer, name), "rb") as packed:
            with open(os.path.join(folder, name.removesuffix(".gz")), "wb") as plain:
                shutil.copyfileobj(packed, plain)


def quantised(folder):
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.bfloat16, device_map="cpu")


def tensors(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(folder, name), "pt") as f:
                found.update({k: f.get_tensor(k) for k in f.keys()})
    return found


def state(t):
    return json.loads(bytes(t.tolist()))


def same(ours, theirs):
    if set(ours) != set(theirs):
        return 0, sorted(set(ours) ^ set(theirs))[:5]
    wrong = []
    for name, want in theirs.items():
        got = ours[name]
        if "quant_state" in name:
            a, b = state(got), state(want)
            equal = all(a.get(k) == v for k, v in b.items())
        else:
            equal = got.dtype == want.dtype and got.shape == want.shape and torch.equal(got, want)
        if not equal:
            wrong.append(name)
    return len(theirs), wrong[:5]


def main():
    with tempfile.TemporaryDirectory() as tmp:
        source = sys.argv[1] if len(sys.argv) > 1 else os.path.join(tmp, "source")
        if len(sys.argv) < 2:
            small(source)
        theirs, ours = os.path.join(tmp, "theirs"), os.path.join(tmp, "ours")
        model = quantised(source)
        model.save_pretrained(theirs)
        subprocess.run(["go", "run", "./cmd/qlora", "export", "--model", source, "--quant_method", "bnb", "--quant_bits", "4", "--output_dir", ours],
                       cwd=ROOT, check=True, stdout=sys.stderr)
        compared, wrong = same(tensors(ours), tensors(theirs))

        # What qlora reads of their checkpoint; before the first forward, which may repack the weights for the processor.
        values, off = 0, []
        dump = os.path.join(tmp, "values")
        subprocess.run(["go", "run", "./scripts/bnb/values", theirs, dump], cwd=ROOT, check=True)
        for name, module in model.named_modules():
            if not isinstance(module, bitsandbytes.nn.Linear4bit):
                continue
            w = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).to(torch.float32)
            read = numpy.fromfile(os.path.join(dump, name + ".weight"), numpy.float32).reshape(w.shape)
            values += read.size
            if not numpy.array_equal(read, w.numpy()):
                off.append(name)

        ids = torch.arange(96).remainder(model.config.vocab_size)[None]
        with torch.no_grad():
            want = model(ids).logits
            got = transformers.AutoModelForCausalLM.from_pretrained(ours, device_map="cpu", dtype=torch.bfloat16)(ids).logits
    result = {
        "what": "NF4 checkpoints of qlora and of transformers + bitsandbytes on the CPU, both ways",
        "bitsandbytes": bitsandbytes.__version__, "transformers": transformers.__version__, "torch": torch.__version__,
        "command": "scripts/bnb/check.py", "tensors_equal_to_the_byte": compared, "tensors_that_differ": wrong,
        "logits_equal": bool(torch.equal(want, got)), "values_read_equal": values, "weights_read_wrong": off,
    }
    result["holds"] = compared > 0 and not wrong and result["logits_equal"] and values > 0 and not off
    print(json.dumps(result, indent=2))
    sys.exit(0 if result["holds"] else 1)


if __name__ == "__main__":
    main()

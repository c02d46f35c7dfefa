#!/usr/bin/env python3
"""Time greedy decoding by transformers, to stand beside `qlora bench decode` of the same run.

    qlora bench weights --model qwen2.5-7b --tokenizer testdata/tokenizer/qwen2.5 -o DIR
    python3 scripts/generate/check.py DIR [TOKENS]      # where torch, transformers and a card are

One sequence, a prompt of 128 tokens, TOKENS (128) new ones, bfloat16, PyTorch's attention: generate as it is, with a static
cache, and with a static cache and torch.compile. Prints a JSON object a line: seconds a token (median of 3 calls, the
prefill taken off) and tokens a second.
"""
import json
import statistics
import sys
import time

import torch
import transformers

PROMPT = 128


def timed(model, ids, new, **how):
    torch.cuda.synchronize()
    begun = time.perf_counter()
    model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, **how)
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def main():
    path, new = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 128
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map={"": "cuda"}).eval()
    torch.manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT), device="cuda")
    for name, how in (("generate", {}), ("static cache", {"cache_implementation": "static", "disable_compile": True}),
                      ("static cache, compiled", {"cache_implementation": "static"})):
        line = {"how": name, "transformers": transformers.__version__, "torch": torch.__version__, "card": torch.cuda.get_device_name()}
        try:
            timed(model, ids, new, **how)
            one = statistics.median(timed(model, ids, 1, **how) for _ in range(3))
            all_ = statistics.median(timed(model, ids, new, **how) for _ in range(3))
            each = (all_ - one) / (new - 1)
            line |= {"prompt": PROMPT, "new": new, "first_token_seconds": one, "token_seconds": each, "tokens_per_second": 1 / each}
        except Exception as error:  # a way that this version has not is a line that says so
            line["error"] = f"{type(error).__name__}: {error}"[:200]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

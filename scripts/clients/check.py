#!/usr/bin/env python3
"""What scripts/clients/check.sh has exported, read by other programs. Prints one JSON object; exit status 1 where a check
does not hold."""
import importlib.metadata
import json
import os
import platform
import sys
import time

import gguf
import numpy as np
import peft
import torch
import transformers
from gguf import GGMLQuantizationType as T

model_path, adapter_path, work = sys.argv[1:]
checks = []


def check(name, holds, **facts):
    checks.append({"check": name, "holds": bool(holds), **facts})
    print(f"{'ok  ' if holds else 'FAIL'} {name} {facts}", file=sys.stderr)


def load(path, **more):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **more).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


def apart(got, want):
    return float((got - want).norm() / want.norm())


row = json.load(open(f"{work}/row.json"))
ids = [t["id"] for t in row["tokens"]]

# The oracle: PEFT on what transformers reads of the .gguf base.
base = load(os.path.dirname(model_path) or ".", gguf_file=os.path.basename(model_path))
plain = logits(base, ids)
tuned = peft.PeftModel.from_pretrained(base, adapter_path, adapter_name="one").eval()
want = logits(tuned, ids)
moved = apart(want, plain)

merged = load(f"{work}/merged")
got = logits(merged, ids)
check("transformers: a merged model in 3 shards", apart(got, want) < 1e-5 < moved, relative_difference=apart(got, want), the_adapter_moves=moved)

tuned.load_adapter(adapter_path, adapter_name="two")
tuned.add_weighted_adapter(["one", "two"], [0.25, 0.5], "cat", combination_type="cat")
tuned.set_adapter("cat")
blend = logits(tuned, ids)
got = logits(load(f"{work}/merged-blend"), ids)
check("transformers: a merged blend is PEFT's cat", apart(got, blend) < 1e-5, relative_difference=apart(got, blend), from_one_alone=apart(want, blend))
tuned.load_adapter(f"{work}/peft-blend", adapter_name="ours")
tuned.set_adapter("ours")
got = logits(tuned, ids)
check("PEFT: a blend as one adapter is PEFT's cat", apart(got, blend) < 1e-5, relative_difference=apart(got, blend))

folder = load(f"{work}/base")
got = logits(folder, ids)
check("transformers: a .gguf base as a folder, bfloat16", apart(got, plain) < 2e-2, relative_difference=apart(got, plain))

tok = transformers.AutoTokenizer.from_pretrained(f"{work}/merged")
texts = ["Hello world", "你是谁? 我由 CSDN 开发", "x  \n\n\t 123 4567's I'LL", "<|im_start|>user\nhi<|im_end|>\n", "é 1½ 🦙"]
theirs = transformers.AutoTokenizer.from_pretrained(os.path.dirname(model_path) or ".", gguf_file=os.path.basename(model_path))
same = [t for t in texts if tok(t, add_special_tokens=False)["input_ids"] == theirs(t, add_special_tokens=False)["input_ids"]]
check("transformers: tokenizer.json made of GGUF metadata", len(same) == len(texts), texts=len(texts), equal=len(same))
answers = json.load(open(f"{work}/answers.json"))["answers"]
prompt = tok.apply_chat_template([{"role": "user", "content": answers[0]["question"]}], add_generation_prompt=True, tokenize=True)
prompt = prompt["input_ids"] if not isinstance(prompt, list) else prompt
check("transformers: the chat template gives the tokens trained on", ids[: len(prompt)] == list(prompt), tokens=len(prompt))


def greedy(question):
    given = tok.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = merged.generate(**given, do_sample=False, max_new_tokens=48)
    return tok.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip()


equal = sum(greedy(a["question"]) == a["got"] for a in answers)
check("transformers: generate on the merged model answers as qlora infer", equal == len(answers), questions=len(answers), equal=equal)

# GGUF: the bytes of every tensor are what the package makes of the merged float32 weights.
names = {"embed_tokens": "token_embd", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k",
         "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down", "norm": "output_norm", "lm_head": "output"}
state, config = merged.state_dict(), merged.config
expected = {}
for name, tensor in state.items():
    if name == "lm_head.weight" and config.tie_word_embeddings:
        continue
    parts = name.split(".")
    layer = f"blk.{parts[2]}." if parts[1] == "layers" else ""
    values = tensor.numpy()
    if config.model_type == "llama" and parts[-2] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if parts[-2] == "q_proj" else config.num_key_value_heads
        values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
    expected[f"{layer}{names[parts[-2]]}.{parts[-1]}"] = np.ascontiguousarray(values)
for quant in ("f32", "f16", "bf16", "q8_0", "q4_0"):
    reader = gguf.GGUFReader(f"{work}/{quant}/model-{quant}.gguf")
    found = {t.name: t for t in reader.tensors}
    bad = [n for n in expected if n not in found] + [n for n in found if n not in expected]
    kinds = {}
    for name in expected:
        if name not in found:
            continue
        t = found[name]
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
        ref = expected[name]
        made = ref if t.tensor_type == T.F32 else gguf.quants.quantize(ref, t.tensor_type)
        if not np.array_equal(np.ascontiguousarray(made).view(np.uint8).ravel(), np.ascontiguousarray(t.data).view(np.uint8).ravel()):
            bad.append(name)
    check(f"gguf package: model {quant}, every byte", not bad, tensors=len(found), types=kinds, differ=bad[:5])
reader = gguf.GGUFReader(f"{work}/adapter/adapter.gguf")
factors = {t.name: np.array(t.data).reshape(t.shape[::-1]) for t in reader.tensors}
alpha = float(reader.get_field("adapter.lora.alpha").contents())
worst = 0.0
plain_state = load(os.path.dirname(model_path) or ".", gguf_file=os.path.basename(model_path)).state_dict()
for name, tensor in state.items():
    parts = name.split(".")
    if parts[1] != "layers" or "proj" not in parts[-2]:
        continue
    key = f"blk.{parts[2]}.{names[parts[-2]]}.weight"
    a, b = factors[key + ".lora_a"], factors[key + ".lora_b"]
    delta = alpha / a.shape[0] * b.astype(np.float64) @ a.astype(np.float64)
    true = (tensor.double() - plain_state[name].double()).numpy()
    if config.model_type == "llama" and parts[-2] in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if parts[-2] == "q_proj" else config.num_key_value_heads
        true = true.reshape(heads, 2, true.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(true.shape)
    worst = max(worst, np.linalg.norm(delta - true) / np.linalg.norm(true))
check("gguf package: the adapter's updates", worst < 1e-4, tensors=len(factors), worst_relative_difference=float(worst))

# llama.cpp itself.
try:
    import llama_cpp
except ImportError:
    llama_cpp = None
    print("not run: llama-cpp-python is not installed", file=sys.stderr)
if llama_cpp:
    def ask(llm):
        same = 0
        for a in answers:
            text = llm.create_chat_completion([{"role": "user", "content": a["question"]}], temperature=0, max_tokens=48)["choices"][0]["message"]["content"]
            same += text.strip() == a["got"]
        return same

    for name, path, lora in [("model f16", f"{work}/f16/model-f16.gguf", None), ("model q8_0", f"{work}/q8_0/model-q8_0.gguf", None),
                             ("model q4_0", f"{work}/q4_0/model-q4_0.gguf", None), ("base and adapter", model_path, f"{work}/adapter/adapter.gguf")]:
        llm = llama_cpp.Llama(path, lora_path=lora, n_ctx=512, logits_all=True, verbose=False, seed=1)
        llm.reset()
        llm.eval(ids)
        theirs = torch.tensor(np.array(llm.scores[: len(ids)])).double()
        off = apart(theirs, want)
        same = ask(llm)
        # llama.cpp rounds activations to 8 bits where weights are quantised.
        loose = {"model f16": 0.01, "model q8_0": 0.1, "model q4_0": 0.8, "base and adapter": 0.1}[name]
        check(f"llama.cpp: {name}", off < loose < moved, relative_difference_of_logits=off, questions=len(answers), answered_as_qlora=same)
        del llm

if os.path.exists(f"{work}/ollama.json"):
    o = json.load(open(f"{work}/ollama.json"))
    rendered = "".join(f"<|im_start|>{r}\n{c}<|im_end|>\n" for r, c in [("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2")]) + "<|im_start|>assistant\n"
    check("Ollama's parsers: Modelfile, template, adapter.gguf, model.gguf",
          o["Rendered"] == rendered and o["Commands"]["adapter"] == "./adapter.gguf" and [f["Kind"] for f in o["Files"]] == ["adapter", "model"],
          commands=sorted(o["Commands"]), files=o["Files"])
else:
    print("not run: Ollama's packages could not be had", file=sys.stderr)

print(json.dumps({
    "what": "what qlora export wrote, read by other programs",
    "model": os.path.basename(model_path), "date": time.strftime("%Y-%m-%d"), "python": platform.python_version(),
    "transformers": transformers.__version__, "peft": peft.__version__, "torch": torch.__version__, "gguf": importlib.metadata.version("gguf"),
    "llama_cpp_python": llama_cpp and llama_cpp.__version__, "checks": checks, "hold": all(c["holds"] for c in checks),
}, indent=2))
sys.exit(0 if all(c["holds"] for c in checks) else 1)

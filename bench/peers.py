"""A training step of another trainer, timed as `qlora bench step` times ours: one process a trainer, started by
`qlora bench peers`, which gives it the weights.

Prints a JSON object a line: for every case {"rows", "tokens", "checkpointing", "seconds": [...], "first", "bytes", "versions"},
or {"rows", ..., "error"}; and {"error"} where the trainer itself does not start.

The step is the same for all: forward, backward, gradient norm clipped to 1, AdamW, on random tokens, every token a label,
LoRA on all seven linear layers, bfloat16 autocast. The device is waited for on both sides of the clock.
"""
import argparse
import gc
import importlib.metadata
import json
import time
import traceback

import torch

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def say(**line):
    print(json.dumps(line), flush=True)


def versions(*names):
    found = {"torch": torch.__version__}
    for name in names:
        found[name] = importlib.metadata.version(name)
    return found


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


class Trainer:
    """A model with an adapter. checkpoint(on) switches recomputing of activations; wrap(model) is what a step calls."""

    packages = ("transformers", "peft")

    def __init__(self, args):
        self.args = args
        self.model = self.adapt(self.load())
        self.recomputes = False

    def load(self):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            self.args.model, dtype=torch.bfloat16, device_map={"": self.args.device}, attn_implementation="sdpa", **self.quantized())
        model.config.use_cache = False
        return model

    def quantized(self):
        return {}

    def adapt(self, model):
        from peft import LoraConfig, get_peft_model

        for p in model.parameters():
            p.requires_grad_(False)
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=self.args.rank, lora_alpha=4 * self.args.rank, lora_dropout=0.0, target_modules=TARGETS, task_type="CAUSAL_LM"))
        model.train()
        return model

    def checkpoint(self, on):
        if on and not self.recomputes:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        elif not on and self.recomputes:
            self.model.gradient_checkpointing_disable()
        self.recomputes = on

    def wrap(self):
        return self.model


class Compiled(Trainer):
    def wrap(self):
        torch._dynamo.reset()
        return torch.compile(self.model, dynamic=False)


class Liger(Trainer):
    packages = ("transformers", "peft", "liger-kernel")

    def load(self):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2()
        return super().load()


class BitsAndBytes(Trainer):
    packages = ("transformers", "peft", "bitsandbytes")

    def quantized(self):
        from transformers import BitsAndBytesConfig

        # prepare_model_for_kbit_training would copy embedding, norms and head to float32 as well: left out, to the trainer's gain
        return {"quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)}


class Unsloth(Trainer):
    packages = ("unsloth", "transformers", "peft")
    bits = 16

    def load(self):
        from unsloth import FastLanguageModel

        # its own recomputing is chosen when the model is made, and so for all cases of a process
        self.gc = "unsloth" if any(c[2] for c in self.args.cases) else False
        model, _ = FastLanguageModel.from_pretrained(
            model_name=self.args.model, max_seq_length=max(c[1] for c in self.args.cases), dtype=torch.bfloat16, load_in_4bit=self.bits == 4,
            load_in_16bit=self.bits == 16, use_gradient_checkpointing=self.gc, local_files_only=True, use_exact_model_name=True)
        return model

    def adapt(self, model):
        from unsloth import FastLanguageModel

        model = FastLanguageModel.get_peft_model(
            model, r=self.args.rank, lora_alpha=4 * self.args.rank, lora_dropout=0, bias="none", target_modules=TARGETS, use_gradient_checkpointing=self.gc, random_state=0)
        try:
            FastLanguageModel.for_training(model, use_gradient_checkpointing=bool(self.gc))
        except TypeError:  # older versions know it from above
            FastLanguageModel.for_training(model)
        model.train()
        return model

    def checkpoint(self, on):
        if bool(self.gc) != on:
            raise ValueError("Unsloth takes cases of one kind of recomputing a process")


class UnslothNF4(Unsloth):
    bits = 4


TRAINERS = {"peft": Trainer, "peft-compile": Compiled, "peft-liger": Liger, "peft-nf4": BitsAndBytes, "unsloth": Unsloth, "unsloth-nf4": UnslothNF4}


def measure(trainer, rows, tokens, recomputes):
    args = trainer.args
    trainer.checkpoint(recomputes)
    step = trainer.wrap()
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=args.device == "cuda")
    vocabulary = trainer.model.get_input_embeddings().weight.shape[0] - 1000
    ids = torch.randint(0, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(1)).to(args.device)
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(args.warmup + args.steps):
        wait(args.device)
        begun = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = step(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait(args.device)
        times.append(time.perf_counter() - begun)
    if not torch.isfinite(loss):
        raise ValueError("the loss is not finite")
    held = torch.cuda.max_memory_reserved() if args.device == "cuda" else 0
    return {"seconds": times[args.warmup:], "first": times[0], "bytes": held}


def case(text):
    rows, tokens = text.rstrip("c").split("x")
    return int(rows), int(tokens), text.endswith("c")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", choices=TRAINERS, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", type=lambda s: [case(c) for c in s.split(",")], required=True, help="1x2048,2x2048c: rows x tokens, c recomputes activations")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    kind = TRAINERS[args.trainer]
    try:
        found = versions(*kind.packages)
        trainer = kind(args)
    except BaseException as e:
        traceback.print_exc()
        say(error=f"{type(e).__name__}: {e}"[:400])
        raise SystemExit(3)
    for rows, tokens, recomputes in args.cases:
        line = {"rows": rows, "tokens": tokens, "checkpointing": recomputes, "versions": found}
        try:
            line.update(measure(trainer, rows, tokens, recomputes))
        except Exception as e:  # out of memory, most often: the next case may fit
            line["error"] = f"{type(e).__name__}: {e}"[:400]
        say(**line)
        gc.collect()


if __name__ == "__main__":
    main()

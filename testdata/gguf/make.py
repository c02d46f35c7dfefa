"""Writes the GGUF fixtures and what the Python package gguf decodes them to.

blocks.gguf          a tensor of every type we read, and metadata of every type
blocks.safetensors   the same tensors as the package dequantises them, float32
llama.gguf, llama_tied.gguf, qwen2.gguf, qwen2_doubled.gguf
                     tiny models laid out as llama.cpp's converter does: reversed
                     dimensions, q and k of llama permuted; qwen2_doubled has the
                     tied matrix twice, the second time in a better type
models.json          the models' tensors by Hugging Face name: shape, sha256 of the
                     float32 values

Needs numpy, gguf and safetensors (made with gguf 0.19.0, safetensors 0.8.0).
"""
import hashlib
import json
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
rng = np.random.default_rng(11)

# Offsets of the float16 numbers in a block of the types that the package decodes
# but does not encode.
HALVES = {T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def halves(n):
    """Finite float16 values: ordinary, subnormal, zero, negative, the largest."""
    bits = rng.integers(0, 0x7C00, n, dtype=np.uint16)
    bits |= rng.integers(0, 2, n, dtype=np.uint16) << 15
    values = np.where(rng.random(n) < 0.5, rng.normal(0, 0.01, n).astype(np.float16), bits.view(np.float16))
    values[: min(n, 4)] = np.float16([0.0, -0.0, 6e-8, 65504.0])[: min(n, 4)]
    return values


def random_blocks(qtype, rows, cols):
    """Random bytes with finite scales: every code and sub-scale occurs."""
    size, nbytes = gguf.GGML_QUANT_SIZES[qtype]
    blocks = rng.integers(0, 256, (rows * cols // size, nbytes), dtype=np.uint8)
    for at in HALVES.get(qtype) or ([0, 2] if qtype in (T.Q4_1, T.Q5_1) else [0]):
        blocks[:, at : at + 2] = halves(len(blocks)).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def encode(values, qtype):
    if qtype == T.F32:
        return values.astype(np.float32)
    if qtype == T.F16:
        return values.astype(np.float16)
    return gguf.quants.quantize(values.astype(np.float32), qtype)


def decode(data, qtype):
    out = gguf.quants.dequantize(data, qtype)
    assert out.dtype == np.float32
    return np.ascontiguousarray(out)


def write(path, arch, metadata, tensors):
    w = gguf.GGUFWriter(path, arch)
    metadata(w)
    for name, data, qtype in tensors:
        w.add_tensor(name, data, raw_dtype=None if data.dtype in (np.float32, np.float16) else qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make_blocks():
    tensors, expected = [], {}
    for qtype in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K):
        made = {}
        if qtype not in HALVES:
            made["quantised"] = encode(rng.normal(0, 0.02, (3, 512)), qtype)
        if qtype not in (T.F32, T.F16, T.BF16):
            made["random"] = random_blocks(qtype, 2, 768)
        if qtype == T.F16:
            made["random"] = halves(512).reshape(2, 256)
        for kind, data in made.items():
            name = f"{qtype.name}.{kind}"
            tensors.append((name, data, qtype))
            expected[name] = decode(data, qtype)
            assert np.isfinite(expected[name]).all(), name

    def metadata(w):
        w.add_uint8("t.u8", 200)
        w.add_int8("t.i8", -100)
        w.add_uint16("t.u16", 60000)
        w.add_int16("t.i16", -30000)
        w.add_uint32("t.u32", 4000000000)
        w.add_int32("t.i32", -2000000000)
        w.add_float32("t.f32", 1e-5)
        w.add_bool("t.bool", True)
        w.add_string("t.string", "wörd")
        w.add_uint64("t.u64", 2**63 + 5)
        w.add_int64("t.i64", -(2**62))
        w.add_float64("t.f64", 1e-300)
        w.add_array("t.strings", ["a", "", "ü"])
        w.add_array("t.ints", [1, -2, 3])
        w.add_array("t.floats", [0.5, -1.5])
        w.add_array("t.bools", [True, False])

    write(here / "blocks.gguf", "test", metadata, tensors)
    save_file(expected, here / "blocks.safetensors", metadata={"format": "pt"})


def permute(w, heads):
    """The reordering of llama.cpp's converter (LlamaModel.permute)."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


C, F, V, L, H, HK, D = 32, 64, 48, 2, 4, 2, 8


def make_model(name, arch, head, bias):
    """head: None (tied), "own", or "doubled" (the embedding again, in a better type)."""
    tensors, expected = [], {}

    def add(theirs, ours, shape, qtype, values=None, heads=0):
        values = rng.normal(0, 0.5, shape).astype(np.float32) if values is None else values
        stored = permute(values, heads) if heads and arch == "llama" else values
        tensors.append((theirs, encode(stored, qtype), qtype))
        if ours:
            array = decode(encode(values, qtype), qtype)
            expected[ours] = {"shape": list(shape), "sha256": hashlib.sha256(array.tobytes()).hexdigest()}
        return values

    doubled = head == "doubled"
    embed = add("token_embd.weight", None if doubled else "model.embed_tokens.weight", (V, C), T.Q4_0 if doubled else T.Q8_0)
    if head:
        add("output.weight", "model.embed_tokens.weight" if doubled else "lm_head.weight", (V, C), T.Q8_0, embed if doubled else None)
    add("output_norm.weight", "model.norm.weight", (C,), T.F32)
    for i in range(L):
        theirs, ours = f"blk.{i}.", f"model.layers.{i}."
        for t, o, shape, qtype, heads in [
            ("attn_norm.weight", "input_layernorm.weight", (C,), T.F32, 0),
            ("ffn_norm.weight", "post_attention_layernorm.weight", (C,), T.F32, 0),
            ("attn_q.weight", "self_attn.q_proj.weight", (H * D, C), T.Q4_1, H),
            ("attn_k.weight", "self_attn.k_proj.weight", (HK * D, C), T.F16, HK),
            ("attn_v.weight", "self_attn.v_proj.weight", (HK * D, C), T.BF16, 0),
            ("attn_output.weight", "self_attn.o_proj.weight", (C, H * D), T.Q5_0, 0),
            ("ffn_gate.weight", "mlp.gate_proj.weight", (F, C), T.Q5_1, 0),
            ("ffn_up.weight", "mlp.up_proj.weight", (F, C), T.Q8_0, 0),
            ("ffn_down.weight", "mlp.down_proj.weight", (C, F), T.Q4_0, 0),
        ] + bias * [
            ("attn_q.bias", "self_attn.q_proj.bias", (H * D,), T.F32, H),
            ("attn_k.bias", "self_attn.k_proj.bias", (HK * D,), T.F32, HK),
            ("attn_v.bias", "self_attn.v_proj.bias", (HK * D,), T.F32, 0),
        ]:
            add(theirs + t, ours + o, shape, qtype, heads=heads)

    def metadata(w):
        w.add_block_count(L)
        w.add_context_length(128)
        w.add_embedding_length(C)
        w.add_feed_forward_length(F)
        w.add_head_count(H)
        w.add_head_count_kv(HK)
        w.add_layer_norm_rms_eps(1e-5)
        w.add_rope_freq_base(1e6)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2" if arch == "qwen2" else "smollm")
        w.add_token_list([f"t{i}" for i in range(V)])
        w.add_token_types([1] * (V - 2) + [3, 3])
        w.add_token_merges(["t 0", "t 1"])
        w.add_bos_token_id(V - 2)
        w.add_eos_token_id(V - 1)
        w.add_add_bos_token(False)
        w.add_chat_template("{{ messages }}")
        w.add_string("general.source.repo_url", f"https://huggingface.co/some-org/{name}")

    write(here / f"{name}.gguf", arch, metadata, tensors)
    return {"tied": head != "own", "bias": bool(bias), "tensors": expected}


make_blocks()
models = {
    "llama": make_model("llama", "llama", "own", True),
    "llama_tied": make_model("llama_tied", "llama", None, False),
    "qwen2": make_model("qwen2", "qwen2", "own", True),
    "qwen2_doubled": make_model("qwen2_doubled", "qwen2", "doubled", True),
}
(here / "models.json").write_text(json.dumps(models, indent=1, sort_keys=True) + "\n")

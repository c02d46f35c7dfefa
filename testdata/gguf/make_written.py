"""Writes what the Python package gguf makes of the values that our writer is given.

values.safetensors   float32 values: ordinary, ties, denormal, zero, of both signs; "half" holds what float16 takes
written.gguf         the same as the package writes it: a tensor of every type we write, metadata of every type we write

Needs numpy, gguf and safetensors (made with gguf 0.19.0, safetensors 0.8.0).
"""
import pathlib

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
rng = np.random.default_rng(12)


def values():
    v = rng.normal(0, 0.02, (24, 256)).astype(np.float32)
    v[1] = 0
    v[2, ::2] = -v[2, ::2]
    v[3] = np.linspace(-127, 127, 256)  # integers and halves of q8_0
    v[4, :32] = np.arange(-16, 16) / 2  # halves of both
    v[5] *= 1e-30  # scales that float16 flushes to zero
    v[6] *= np.float32(1e-3) ** rng.integers(0, 3, 256)
    v[7, 0:32] = -0.0
    v[8, 0:32] = 1.0  # the largest magnitude many times
    v[9, 0:32] = np.tile([1, -1], 16)
    v[10] *= 1e5
    v[11] = rng.integers(-8, 8, 256)
    v[12] = rng.integers(-255, 256, 256) / 2
    return v


def main():
    v = values()
    half = v.copy()
    half[5] = 0
    save_file({"values": v, "half": half}, here / "values.safetensors")
    w = gguf.GGUFWriter(here / "written.gguf", "qwen2")
    w.add_type("model")
    w.add_uint32("a.count", 4_000_000_000)
    w.add_int32("a.signed", -5)
    w.add_float32("a.number", 1e-6)
    w.add_bool("a.yes", True)
    w.add_bool("a.no", False)
    w.add_array("a.texts", ["Ġone", "", "三"])
    w.add_array("a.ints", [1, -2, 3])
    w.add_array("a.floats", [0.5, -1.5])
    w.add_string("a.text", "line\nnext")
    w.add_tensor("norm", v[0])
    w.add_tensor("f32", v[:3, :192].copy())
    w.add_tensor("f16", half.astype(np.float16))
    w.add_tensor("bf16", gguf.quants.quantize(v, T.BF16), raw_dtype=T.BF16)
    for kind in (T.Q8_0, T.Q4_0):
        w.add_tensor(kind.name, gguf.quants.quantize(v, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()

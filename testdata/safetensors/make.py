"""Writes types.safetensors and empty.safetensors with the format's own package:
tensors of many types whose order, padding and escapes our writer must meet.
Needs numpy and safetensors (made with 0.8.0)."""
import pathlib

import numpy as np
from safetensors.numpy import save_file

here = pathlib.Path(__file__).parent
rng = np.random.default_rng(7)
tensors = {}
for i, name in enumerate(
    "bool uint8 int8 int16 uint16 float16 int32 uint32 float32 complex64 float64 int64 uint64".split()
):
    for shape in [(), (3,), (2, 5), (0, 4), (2, 1, 3)]:
        values = rng.integers(0, 2 if name == "bool" else 100, shape)
        tensors[f"{'zyxabc'[i % 6]}.{name}.{'x'.join(map(str, shape))}"] = np.asarray(values, dtype=name)
tensors['quoted "<é&>\\\t/\x01\u2028'] = np.float32([1.5])
save_file(tensors, here / "types.safetensors", metadata={"format": "pt"})
save_file({}, here / "empty.safetensors")

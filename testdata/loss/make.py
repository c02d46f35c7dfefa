"""Writes loss.json: what transformers makes of --label_smoothing_factor and --neftune_noise_alpha.

smoothing: the loss of LabelSmoother over one row of hidden states x (T,C) and a head w (V,C), and its gradient in x, by
torch in float64. neftune: the bounds that the hook of NEFTune passes to uniform_. Made with transformers 5.24.0 and
torch 2.15.0."""
import json
import pathlib
from unittest import mock

import torch
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_pt_utils import LabelSmoother

T, C, V = 12, 8, 19
g = torch.Generator().manual_seed(11)
x = torch.randn(T, C, generator=g, dtype=torch.float64).float()
w = torch.randn(V, C, generator=g, dtype=torch.float64).float()
labels = torch.randint(0, V, (T,), generator=g)
labels[[0, 1, 5, 8]] = -100
items = 20  # label tokens of the step, in this row and others
rows = []
for epsilon in (0.0, 0.1, 0.5, 1.0):
    leaf = x.double().requires_grad_()
    logits = (leaf @ w.double().T)[None]
    if epsilon:
        loss = LabelSmoother(epsilon)({"logits": logits}, labels[None], shift_labels=True, num_items_in_batch=items)
    else:
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[1:], reduction="sum") / items
    loss.backward()
    rows.append({"epsilon": epsilon, "loss": loss.item(), "dx": leaf.grad.flatten().tolist()})

bounds = []
for alpha, length, width in ((5, 7, 64), (5.0, 1, 896), (15, 2048, 3584), (0.1, 33, 48)):
    module = mock.Mock(training=True, neftune_noise_alpha=alpha)

    def record(tensor, low, high):
        bounds.append({"alpha": alpha, "length": length, "width": width, "low": float(low), "high": float(high)})
        return tensor

    with mock.patch.object(torch.Tensor, "uniform_", record):
        neftune_post_forward_hook(module, None, torch.zeros(1, length, width))

pathlib.Path(__file__).with_name("loss.json").write_text(json.dumps({
    "smoothing": {"T": T, "C": C, "V": V, "x": x.flatten().tolist(), "w": w.flatten().tolist(), "labels": labels.tolist(),
                  "items": items, "rows": rows},
    "neftune": bounds}, indent=1) + "\n")

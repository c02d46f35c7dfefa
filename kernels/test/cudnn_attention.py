"""cuDNN's attention, through torch, at the shapes of attention_test: the yardstick of the same card, a JSON line each."""
import json
import statistics
import sys

import torch

H, HK, D = 28, 4, 128
ops = torch.ops.aten


def measure(run, repeats, rounds=31):
    times = []
    for _ in range(rounds + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(200000)  # the host's launches of a round are queued before the first starts
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / repeats)
    return statistics.median(times[2:])


def shape(T):
    q, k, v, g = (torch.randn(T, h, D, device="cuda", dtype=torch.bfloat16).transpose(0, 1)[None] for h in (H, HK, HK, H))
    forward = lambda: ops._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=D**-0.5)
    o, lse, cq, ck, mq, mk, seed, offset, _ = forward()

    def backward(bias):
        return ops._scaled_dot_product_cudnn_attention_backward(
            g, q, k, v, o, lse, seed, offset, bias, cq, ck, mq, mk, 0.0, True, scale=D**-0.5)

    try:
        backward(None)
        bias = None
    except RuntimeError:  # older torch wants an empty tensor
        bias = torch.empty(0, device="cuda")
        backward(bias)
    return forward, lambda: backward(bias)


def main():
    for T in (1024, 2048, 4096, 8192):
        for back, run in enumerate(shape(T)):
            flops = 2 * H * D * T * T * (2.5 if back else 1)
            us = measure(run, max(1, int(4e9 / flops)))
            print(json.dumps({"op": "attention", "name": "cudnn", "back": back, "T": T, "us": round(us, 1),
                              "tflops": round(flops / us / 1e6, 1)}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

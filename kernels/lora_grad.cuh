/* The gradients of LoRA factors, as lora_grad.cu gives them to other ops. */
#pragma once

#include "lora.cuh"

enum grad_side { SIDE_A, SIDE_B };

constexpr int grad_block = 256;  // tokens summed in one piece: ops.GradBlock
constexpr int grad_max_jobs = 8;

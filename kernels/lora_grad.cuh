/* The gradients of LoRA factors, as lora_grad.cu gives them to other ops. */
#pragma once

#include "lora.cuh"

enum grad_side { SIDE_A, SIDE_B };
/* What a job's wide operand is: itself, or act made again from gate|up (T,2F) of a SwiGLU. */
enum grad_source { SOURCE_PLAIN, SOURCE_ACT };

constexpr int grad_block = 256;  // tokens summed in one piece: ops.GradBlock
constexpr int grad_max_jobs = 8;

qk_status lora_grad(const char *name, grad_source source, const qk_grad_job *jobs, int n, const qk_batch *b, qk_ptr work,
                    int64_t work_bytes, cudaStream_t stream);

/* The attention kernels. Their launchers, which add the LoRA passes around them, are declared in attention.cuh. */
#include "attention_bwd_sm90.cuh"
#include "attention_fwd_sm90.cuh"

#!/bin/sh
# Print the architectures of the cards in this machine, as nvcc names them; nothing where there is none.
command -v nvidia-smi > /dev/null 2>&1 || exit 0
nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | sort -u | while read -r capability; do
  case $capability in
    8.0) echo sm_80 ;;
    8.6) echo sm_86 ;;
    8.9) echo sm_89 ;;
    9.0) echo sm_90a ;;
    12.*) echo sm_120a ;;
    *) ;; # sm_80 carries PTX, which the driver compiles
  esac
done | tr '\n' ' '

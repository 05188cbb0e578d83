"""What is to be measured on a GPU host, a command a step, rehearsed on a CPU.

    python -m benchmarks.gpu_queue profile --out queue/                            # on the GPU
    python -m benchmarks.gpu_queue all --model tiny --device cpu --out rehearsal/  # anywhere

`docs/gpu-host.md` says what each step is for, how long it takes and what it leaves behind.
"""

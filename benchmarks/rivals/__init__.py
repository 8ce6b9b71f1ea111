"""Other tools beside the guard, in one harness: four gloo ranks of a plain DDP job, rank 2 struck from outside.

    python -m benchmarks.rivals [--only ours,torchrun,nvrx,torchft,dlrover] [--repeats 3]

job.py       a job under any launcher: started, struck, timed, ended
ours.py torchrun.py nvrx.py torchft.py dlrover.py    how each is configured, and what it says when it names somebody
ranks/       plain.py: one rank of the job, which imports nothing of ours; detector.py: NVRx's straggler detector without
             CUPTI; decoder.py: the guard's own model under torchrun, for benchmarks/guard.py
"""

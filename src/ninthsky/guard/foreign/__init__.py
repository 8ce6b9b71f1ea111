"""Scripts that know nothing of us, under the probe: `n9 guard run -- torchrun ... train.py`.

inject/sitecustomize.py   read by every Python that the command starts; waits for torch
hooks, adopted, watcher   in the rank: its groups are wrapped, its steps counted, its record written
messages                  what a rank tells
ranks, command            on the host: the ranks that came, the command and its log
hosts                     several hosts: the first one's supervisor hears of all ranks
supervisor, ends          judges over the records, and over the ends of ranks; faults
hang, restarts            how long a rank is waited for; when the command is started again
run                       the process of `n9 guard run`
"""

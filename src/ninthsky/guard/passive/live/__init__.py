"""A job that knows nothing of us, followed while it runs: /proc, exits, logs, the kernel's log, exporters, Python stacks.

Nothing in the job is changed or stopped. `processes` finds its ranks, `readings` samples them, `ends` sees them go, `logs`
follows what is written, `stacks` asks py-spy; `verdicts` and `slowness` are pure functions of these, `reasons` asks the
playbook, `record` keeps the faults, `crew` is what is known of one start of the job; `watcher` is the loop.
"""

"""The playbook: classes of faults, what gives each away, and what may be done about it."""

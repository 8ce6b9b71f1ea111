"""What runs inside a rank: its record in shared memory, its line to the agent, and the process group that counts collectives."""

"""What runs inside a rank: its record in shared memory, its line to the agent, the group that counts collectives."""

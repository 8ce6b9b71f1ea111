"""The live page: a process of its own that reads a job's files. Its death harms nothing."""

"""An exported checkpoint behind an OpenAI-compatible address, and one question to it from the command line."""

"""The pages of the console. Each takes what is known, and gives HTML."""

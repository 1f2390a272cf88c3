"""The process: its workers, what they listen on, and the HTTP that clients speak."""

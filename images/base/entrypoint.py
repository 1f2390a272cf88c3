"""hiveio/base as the process of its image."""

from hiveio.roles.base import base
from hiveio.server.process import serve

if __name__ == "__main__":
    serve(base)

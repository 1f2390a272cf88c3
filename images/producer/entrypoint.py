"""hiveio/producer as the process of its image."""

from hiveio.roles.producer import producer
from hiveio.server.process import serve

if __name__ == "__main__":
    serve(producer)

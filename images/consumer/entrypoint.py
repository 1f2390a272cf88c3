"""hiveio/consumer as the process of its image."""

from hiveio.roles.consumer import consumer
from hiveio.server.process import serve

if __name__ == "__main__":
    serve(consumer)

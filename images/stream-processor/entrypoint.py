"""hiveio/stream-processor as the process of its image."""

from hiveio.roles.stream_processor import stream_processor
from hiveio.server.process import serve

if __name__ == "__main__":
    serve(stream_processor)

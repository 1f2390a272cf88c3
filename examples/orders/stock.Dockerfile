FROM hiveio/stream-processor
COPY __init__.py events.py commands.py stock.py /actor/orders/
ENV ACTOR_MODULE=orders.stock

FROM hiveio/stream-processor
COPY __init__.py events.py commands.py orders.py /actor/orders/
ENV ACTOR_MODULE=orders.orders

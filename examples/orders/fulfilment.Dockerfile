FROM hiveio/stream-processor
COPY __init__.py events.py commands.py fulfilment.py /actor/orders/
ENV ACTOR_MODULE=orders.fulfilment

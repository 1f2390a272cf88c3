FROM hiveio/stream-processor
COPY __init__.py events.py commands.py payments.py /actor/orders/
ENV ACTOR_MODULE=orders.payments

FROM hiveio/base
COPY __init__.py events.py quotes.py /actor/bank/
ENV ACTOR_MODULE=bank.quotes

FROM hiveio/stream-processor
COPY __init__.py events.py accounts.py /actor/bank/
ENV ACTOR_MODULE=bank.accounts

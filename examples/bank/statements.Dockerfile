FROM hiveio/consumer
COPY __init__.py events.py statements.py /actor/bank/
ENV ACTOR_MODULE=bank.statements

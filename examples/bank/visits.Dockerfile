FROM hiveio/producer
COPY __init__.py visits.py /actor/bank/
ENV ACTOR_MODULE=bank.visits

import time, httpx
from tests.process import Role
from tests.integration.test_producer import *
def test_x(kafka, topic, producer):
    for i in range(2):
        t=time.time(); role=producer(EVENT_STORE_PARTITIONS="2").__enter__(); print("ready",time.time()-t); t=time.time()
        print(httpx.post(role.url+"/accounts/1",json=deposit(1)).status_code, time.time()-t); t=time.time()
        role.stop(); print("stop",time.time()-t); t=time.time(); print(role.text())
        amounts(kafka.brokers, topic); print("read",time.time()-t)
    t=time.time()

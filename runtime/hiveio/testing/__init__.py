"""Testing an actor without a server, over the code that runs in production.

::

    given(AccountActor, Opened("ada"), Deposited(5)).when(Withdraw(9)).then_rejected("overdrawn")

A process manager is given events of other services, and time goes by where a test says so::

    scenario = given(Fulfilment).when(OrderPlaced("o1", 5)).then(Started("o1"))
    scenario.then_sent(("payments", "o1", ReservePayment(5))).then_scheduled((PaymentOverdue("o1"), timedelta(hours=1)))
    scenario.after(hours=1).then(GivenUp("overdue")).then_pending()

``given`` is for plain, synchronous tests, in which one message follows the other. ``Service`` is an asynchronous stream
processor in memory, for tests of several commands at the same time.
"""

from hiveio.testing.processes import PendingDeadline, Sent
from hiveio.testing.scenario import Scenario, given
from hiveio.testing.service import Answer, Logged, Service

__all__ = ["Answer", "Logged", "PendingDeadline", "Scenario", "Sent", "Service", "given"]

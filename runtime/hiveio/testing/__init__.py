"""Testing an actor without a server, over the code that runs in production.

::

    given(AccountActor, Opened("ada"), Deposited(5)).when(Withdraw(9)).then_rejected("overdrawn")

``given`` is for plain, synchronous tests, in which one message follows the other. ``Service`` is an asynchronous stream
processor in memory, for tests of several commands at the same time.
"""

from hiveio.testing.scenario import Scenario, given
from hiveio.testing.service import Answer, Logged, Service

__all__ = ["Answer", "Logged", "Scenario", "Service", "given"]

"""The error output of a worker, as its parent shows it."""

import io

from jaxdpo.devices.supervisor import _ErrorLog

# Written by JAX 0.11 in the worker of process 1 when process 0 was killed.
RECORDED = """\
step 3
E1127 11:56:41.194068   14072 coordination_service_agent.cc:355] Polled an error: UNAVAILABLE
step 4
Additional GRPC error information from remote target coordination_service while calling \
/xla.coordination.CoordinationService/GetKeyValue:
:UNKNOWN:Error received from peer  {grpc_message:"Socket closed", grpc_status:14}. This is only \
expected if one of the tasks is unhealthy.
E1127 11:56:41.194068   14072 file.cc:289] a message of another part
error: of the program itself
"""


def test_the_log_of_the_coordination_service_is_held_back():
    shown: list[str] = []
    log = _ErrorLog(io.StringIO(RECORDED), shown.append)
    held = log.rest()
    assert [line.split(" ")[0] for line in shown] == ["step", "step", "E1127", "error:"]
    assert [line.split(" ")[0] for line in held.splitlines()] == [
        "E1127",
        "Additional",
        ":UNKNOWN:Error",
    ]

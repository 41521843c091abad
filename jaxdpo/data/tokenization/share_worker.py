"""`python -m jaxdpo.data.tokenization.share_worker`: tokenises shares, as `shares` tells it to.

Its input holds what it works by and then one share after the other, pickled by the process that
started it. It answers each share with a line of JSON: null, or the error.
"""

import json
import pickle
import signal
import sys

from jaxdpo.data.tokenization.shares import store_share
from jaxdpo.errors import UserError


def main() -> None:
    """Works until the input ends."""
    # Ctrl-C reaches the whole group of processes; the one that started this one answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    work = pickle.load(sys.stdin.buffer)
    while True:
        try:
            weighted, folder, key = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        problem = None
        try:
            store_share(work, weighted, folder, key)
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{folder}: cannot be written ({error.strerror}); set data.cache_dir"
        answers.write(f"{json.dumps(problem)}\n")
        answers.flush()


if __name__ == "__main__":
    main()

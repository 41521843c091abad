"""`jaxdpo serve` from its configuration to the end of its process."""

import gc
import logging

from jaxdpo.cli.console import Reporter
from jaxdpo.serving.app import make_app
from jaxdpo.serving.config import ServeConfig
from jaxdpo.serving.loading import load_models
from jaxdpo.serving.server import Server, listen, run_server
from jaxdpo.serving.watching import log


def serve(config: ServeConfig) -> None:
    """Loads models and serves them until the process is told to end.

    Raises:
      UserError: For whatever the user can fix.
      SystemExit: With status 130 after Ctrl-C, 143 after SIGTERM.
    """
    reporter = Reporter()
    # Of this server's own lines alone; those of the libraries stay at warnings.
    log.setLevel(logging.INFO)
    # Read before anything is loaded: a key that is not there is said at once.
    config.key()
    with listen(config) as listener:
        models = load_models(config)
        for model in models.values():
            reporter.say(f"{model.name}: loaded, a context of {model.context} tokens")
        keep_loaded()
        run_server(Server(make_app(models, config), config, reporter), listener)


def keep_loaded() -> None:
    """Has the garbage collector pass over all that was loaded so far.

    Modules and models are there until the process ends. To look through them took a third of a
    second now and then, in which no request was answered.
    """
    gc.collect()
    gc.freeze()

"""Local models as judges, asked through the same interface as those at a server."""

from collections.abc import Iterator, Sequence

from jaxdpo.evaluation.judges.client import Conversation, JudgeClient, JudgeConfig, Reply
from jaxdpo.hub.policy import load_policy
from jaxdpo.sampling import SamplingConfig, answer


def local_client(config: JudgeConfig) -> JudgeClient:
    """Loads a judge from a folder or the Hub; it runs on this machine's devices.

    Raises:
      UserError: If it cannot be loaded.
    """
    policy = load_policy(config.model)
    # Both were checked with the configuration: only a server may choose them itself.
    assert config.max_tokens is not None and config.temperature is not None
    sampling = SamplingConfig(
        max_new_tokens=config.max_tokens,
        temperature=config.temperature,
        batch_size=config.concurrency,
    )

    def ask(conversations: Sequence[Conversation]) -> Iterator[Reply]:
        for text in answer(policy, conversations, sampling):
            yield Reply(text) if text else Reply(None, "its reply was empty")

    return JudgeClient(ask)

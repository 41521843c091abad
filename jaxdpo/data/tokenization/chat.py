"""Conversations → token ids, by the tokenizer's own chat template."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from jaxdpo.data.bad_pair import BadPair
from jaxdpo.data.pairs import SAMPLED, Message, PreferencePair, TokenizedPair
from jaxdpo.data.tokenization.ends import NAMED_ENDS, PROBE, configured_ends
from jaxdpo.data.tokenization.pair_encoding import EncodedPair, PairEncoder
from jaxdpo.data.tokenization.template import NO_KWARGS, ChatTemplate
from jaxdpo.errors import UserError
from jaxdpo.storage.files import json_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of every fingerprint: raise it when the same pair would get other ids.
ALGORITHM_VERSION = 3
# Characters of what a library says of a damaged tokenizer; it may repeat all of the file.
_LONGEST_REASON = 400


class Chat:
    """A tokenizer and its chat template: the one way from messages to token ids and back.

    Example:
      chat = Chat(load_tokenizer("models/tiny"))
      ids = chat.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True)

    Text in a message never becomes a control token, whatever it spells (see `control_tokens`);
    all else is what `tokenizer.apply_chat_template` gives.

    Attributes:
      tokenizer: The Hugging Face tokenizer.
      end_token_id: The token that ends an answer of text.
      end_ids: Every token that ends an answer, `end_token_id` first: the template's, the
        tokenizer's and those that the model's configuration names. Sampling stops at each of them.
      fingerprint: SHA-256 of all that token ids depend on.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        template: str | None = None,
        end_ids: Sequence[int] = (),
        embedding_rows: int | None = None,
    ):
        """Looks at a tokenizer.

        Args:
          tokenizer: The tokenizer.
          template: Used in place of its own chat template.
          end_ids: Tokens that end an answer by the model's configuration. Ids of text are passed
            over: a configuration may name what its library has by default.
          embedding_rows: Rows of the model's embedding, where the tokenizer has more tokens. Text
            that yields one of these is refused.

        Raises:
          UserError: If there is no template, or it cannot be used.
        """
        self.tokenizer = tokenizer
        self._made_of = (tokenizer, template, tuple(end_ids), embedding_rows)
        # By their texts: a configuration has ids, templates and lists of known ends have names.
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        own = {token.content for token in added.values()}
        known = [added[id].content for id in end_ids if id in added]
        known += [name for name in NAMED_ENDS if name in own]
        if tokenizer.eos_token is not None:
            known.append(cast(str, tokenizer.eos_token))
        sources = _own_templates(tokenizer) if template is None else [template]
        self._template = ChatTemplate(tokenizer, sources, known)
        self._controls = self._template.controls
        first, of_call, *others = (
            cast(int, tokenizer.convert_tokens_to_ids(token))
            for token in (self._template.end_token, self._template.end_of_call, *known)
        )
        self.end_token_id = first
        self.end_ids = tuple(dict.fromkeys([first, *sorted({of_call, *others})]))
        if self._controls.unknown_id in self.end_ids:
            self._controls.forbid_unknown()
        self._size = embedding_rows or len(tokenizer)
        if embedding_rows is not None:
            self._controls.forbid_from(embedding_rows)
        self._pairs = PairEncoder(self._template, self.end_ids, of_call, self._sampled_ids)
        self.fingerprint = self._fingerprint()
        self._check_faithful()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process makes it anew: a compiled template cannot be sent.
        return Chat, self._made_of

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """`end_ids` in increasing order."""
        return tuple(sorted(self.end_ids))

    @cached_property
    def vocabulary(self) -> str:
        """Digest of which id stands for which token: where it is the same, ids mean the same."""
        return json_digest(sorted(self.tokenizer.get_vocab().items()))[:16]

    def encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = False,
        template_kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> list[int]:
        """Encodes a conversation.

        Args:
          messages: `{"role": ..., "content": ...}` each.
          tools: Function definitions for the template.
          add_generation_prompt: Whether to open the assistant's next message.
          template_kwargs: Further variables for the template.

        Raises:
          BadPair: If the template refuses the messages, or their text cannot be encoded.
        """
        said = [{k: v for k, v in message.items() if k != SAMPLED} for message in messages]
        text = self._template.render(said, tools, add_generation_prompt, template_kwargs).text
        [ids] = self._controls.encode([text])
        if isinstance(ids, BadPair):
            raise ids
        return ids.tolist()

    def encode_pair(self, pair: PreferencePair) -> TokenizedPair:
        """Encodes one pair; see `encode_pairs`.

        Raises:
          BadPair: If the pair cannot be encoded.
        """
        encoded = self.encode_pairs([pair])[0]
        if isinstance(encoded, BadPair):
            raise encoded
        return encoded.tokens

    def encode_pairs(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair | BadPair]:
        """Encodes pairs, or says why one cannot be; many at once, for the tokenizer's threads.

        Both completions follow the prompt as it will be asked. Each ends in one token that ends
        answers: what the template writes after it is removed, and one is added where the template
        writes none. Of a completion of several messages, what stands between those of the
        assistant is not scored. An answer that carries the ids it was sampled as keeps them.

        Pairs that came as token ids are taken as they are. Text without a prompt, such as a
        document, follows the token that begins a text, without a template.
        """
        asked = [pair for pair in pairs if pair.prompt]
        by_text = iter(self._pairs.encode(asked))
        return [
            next(by_text)
            if pair.prompt
            else self._plain(pair)
            if pair.token_ids is None
            else self._given_ids(pair.token_ids)
            for pair in pairs
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Decodes token ids, special tokens left out."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _sampled_ids(self, message: Message) -> np.ndarray | None:
        """Returns the ids that a message carries, if they are this vocabulary's and say its text.

        Whoever edits the text of a file need not know of the ids beside it.
        """
        carried = message.get(SAMPLED)
        if not carried or carried["vocabulary"] != self.vocabulary or "tool_calls" in message:
            return None
        ids = carried["ids"]
        if not ids or max(ids) >= self._size:
            return None
        # The text has no end, special or not.
        said = ids[:-1] if ids[-1] in self.end_ids else ids
        if self.decode(said) != message["content"]:
            return None
        return np.array(ids, np.int32)

    def _plain(self, pair: PreferencePair) -> EncodedPair | BadPair:
        """Encodes text that answers nothing, as pre-training does: BOS, text, EOS."""
        text = pair.chosen[0]["content"]
        try:
            walled = self._controls.wall(text)
        except BadPair as bad:
            return bad
        [ids] = self._controls.encode([self._controls.spell(walled)])
        if isinstance(ids, BadPair):
            return ids
        eos = cast(int | None, self.tokenizer.eos_token_id)
        end = self.end_ids[0] if eos is None else eos
        bos = cast(int | None, self.tokenizer.bos_token_id)
        # A tokenizer without BOS parts documents by EOS, which then stands before the first, too.
        begin = end if bos is None else bos
        tokens = TokenizedPair(
            np.array([begin], np.int32), np.append(ids, np.int32(end)), np.zeros(0, np.int32)
        )
        return EncodedPair(tokens, spelled_control=walled != text)

    def _given_ids(self, token_ids: Sequence[Sequence[int]]) -> EncodedPair | BadPair:
        size = self._size
        for name, ids in zip(TokenizedPair._fields, token_ids, strict=False):
            if max(ids) >= size:
                return BadPair(
                    "token-ids",
                    f"{name} holds {max(ids)}, but the tokenizer has ids below {size}; the data "
                    "was tokenised for another model",
                )
        prompt, chosen, rejected = (np.array(ids, np.int32) for ids in token_ids)
        return EncodedPair(TokenizedPair(prompt, chosen, rejected))

    def _fingerprint(self) -> str:
        state = [
            ALGORITHM_VERSION,
            self.tokenizer.backend_tokenizer.to_str(),
            {name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
            self._template.source,
            self.end_ids,
            # With fewer rows other lines of a file are refused.
            *([self._size] if self._size < len(self.tokenizer) else []),
        ]
        return json_digest(state)

    def _check_faithful(self) -> None:
        """Compares ids with the tokenizer's own, on text that spells no control token."""
        probe = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        try:
            ids = self.encode(probe)
        except BadPair:
            # A special token of one character stands in the probe; messages with it are refused.
            return
        except Exception as error:
            # The tokenizers library raises plain exceptions, such as for an unknown token that the
            # vocabulary lacks; anything more particular is a fault of this program.
            if type(error) is not Exception:
                raise
            raise UserError(
                f"{self.tokenizer.name_or_path}: the tokenizer cannot encode a plain sentence "
                f"({error}); tokenizer_class in tokenizer_config.json, which it was loaded as a "
                f"{type(self.tokenizer).__name__} by, may not fit tokenizer.json"
            ) from error
        # The rendering is the same; only how it is encoded can differ.
        text = self._template.plain(probe)
        if ids != self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise UserError(
                f"{self.tokenizer.name_or_path}: this tokenizer takes control tokens for text, or "
                'text for them, after normalising it; set "normalized" to false for each of the '
                "added_tokens in tokenizer.json"
            )


def load_chat(
    path: str,
    template_path: str | None = None,
    model_path: str | None = None,
    embedding_rows: int | None = None,
) -> Chat:
    """Loads a folder's tokenizer with its chat template, or with one from a file.

    Tokens that end answers are read from the model folder's configurations.

    Args:
      path: Folder of the tokenizer, or `org/name`.
      template_path: Jinja file used in place of the tokenizer's own template.
      model_path: Folder of the model, where that is another one, as for adapters.
      embedding_rows: Rows of the model's embedding; the tokenizer may have more tokens, as those of
        Gemma 3 1B and CodeLlama do, as long as no text yields them.

    Raises:
      UserError: If either cannot be loaded, or there is no template.
    """
    template = None if template_path is None else read_template(template_path)
    tokenizer = load_tokenizer(path)
    if template is not None:
        # On the tokenizer itself, so that it is saved with it.
        tokenizer.chat_template = template
    if embedding_rows is not None and embedding_rows >= len(tokenizer):
        embedding_rows = None
    ends = configured_ends(Path(model_path or path).expanduser())
    return Chat(tokenizer, end_ids=ends, embedding_rows=embedding_rows)


def read_template(path: str) -> str:
    """Reads the Jinja file of `data.chat_template`.

    Raises:
      UserError: If it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template {path}: cannot be read: {error}") from error


def load_tokenizer(path: str) -> "PreTrainedTokenizerFast":
    """Loads the tokenizer of a model folder or `org/name`, without running code from it.

    Raises:
      UserError: If it is missing, damaged, needs code of its own, or has no fast version.
    """
    from transformers import AutoTokenizer

    folder = Path(path).expanduser()
    if not folder.is_dir() and (folder.is_absolute() or path.startswith((".", "~"))):
        raise UserError(f"{path}: no such folder; name a model folder, or org/name on the Hub")
    if folder.is_dir() and not any(folder.glob("tokenizer*")):
        raise UserError(
            f"{path}: holds no tokenizer (tokenizer.json, tokenizer_config.json); copy its files "
            "from the model that it belongs to"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if folder.is_dir() else path, trust_remote_code=False
        )
    except BaseException as error:
        # For a damaged tokenizer.json the library's Rust code raises Exception itself, or a
        # PanicException, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise UserError(f"{path}: the tokenizer cannot be loaded: {reason}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{path}: the tokenizer has no fast version (tokenizer.json); save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


def _own_templates(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Returns the tokenizer's template, and the one for conversations with tools if it has one."""
    template = cast(str | dict[str, str] | None, tokenizer.chat_template)
    named = template if isinstance(template, dict) else {"default": template}
    default = named.get("default")
    if not default:
        raise UserError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; name a Jinja file with "
            "data.chat_template, the one that the model was trained with"
        )
    with_tools = named.get("tool_use")
    return [default, with_tools] if with_tools else [default]

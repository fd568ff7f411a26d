"""A model provider of Inspect AI: an adapter with its base model, which can be steered while it reads a conversation."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    TopLogprob,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from introspection_lit.utils.errors import ConfigurationError

if TYPE_CHECKING:
    from introspection_lit.detector import Answer

# Key in the metadata of the question's message: the item of a tested run, whose steering is to be applied.
ITEM = "introspection"
# exp of it is the smallest positive probability in float64.
LEAST = -745.0


class IntrospectionAPI(ModelAPI):
    """``--model introspection/ADAPTER``: answers the adapter's question about a conversation, and nothing else.

    The answer comes from :class:`~introspection_lit.detector.Detector`: the base model reads the conversation, steered as
    the question's message says, and the adapter reads the cache. The completion is the likelier of the two answer words,
    with the log-probabilities of both.

    Args:
        model_name: Folder or hub id of the adapter.
        base_url: Not used.
        api_key: Not used.
        config: Not used.
        base: Another place of the base model (``-M base=...``).
        device: Where the model goes (``-M device=...``).
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        base: str | None = None,
        device: str | None = None,
    ) -> None:
        from introspection_lit.detector import Detector  # torch: not whenever Inspect looks at its extensions
        from introspection_lit.harnesses.tested_run import identity_of
        from introspection_lit.models.adapters import read_adapter
        from introspection_lit.utils.checksums import CHECKSUM, file_hash, with_checksum

        super().__init__(model_name, base_url, api_key, [], config)
        adapter = read_adapter(model_name)
        self.identity = identity_of(adapter)
        self.detector = Detector.from_pretrained(model_name, base, device)
        # With --cache, Inspect tells models apart by name and address; this address is that of the files that answer.
        files = {file.name: file_hash(file) for file in adapter.folder.iterdir() if file.is_file()}
        bank = self.detector.bank and self.detector.bank.fingerprint
        self.base_url = "sha256:" + with_checksum({"adapter": files, "bank": bank, "base": base})[CHECKSUM]
        self.one_at_a_time = threading.Lock()

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """The answer to the last message, about those before it."""
        return self._output(await anyio.to_thread.run_sync(self._answer, input))

    def _answer(self, messages: list[ChatMessage]) -> Answer:
        from introspection_lit.harnesses.tested_run import steering_of

        detector, *conversation, asked = self.detector, *messages
        before = f"{detector.phrasing.info}\n\n" if detector.phrasing.info else ""
        if asked.role != "user" or asked.text != before + detector.question:
            expected = f"Expected {before + detector.question!r}, as the task introspection_lit/introspection asks"
            raise ConfigurationError([f"introspection: the last message is {asked.text[:200]!r}. {expected}."])
        if conversation and conversation[0].role == "system" and conversation[0].text == detector.phrasing.system:
            conversation = conversation[1:]
        item, steering = (asked.metadata or {}).get(ITEM), None
        if item is not None and item["steered"]:
            if detector.bank is None:
                raise ConfigurationError([f"introspection: {self.model_name} has no vectors.safetensors in it or above."])
            steering = steering_of(item, detector.bank)
        with self.one_at_a_time:
            return detector.ask([{"role": turn.role, "content": turn.text} for turn in conversation], steering=steering)

    def _output(self, answer: Answer) -> ModelOutput:
        mass = math.log(answer.mass) if answer.mass else LEAST
        both = (answer.log_odds, -answer.log_odds)
        chances = [mass + min(odds, 0.0) - math.log1p(math.exp(-abs(odds))) for odds in both]
        words = sorted(zip(chances, self.detector.phrasing.answers, strict=True), reverse=True)
        top = [TopLogprob(token=word, logprob=chance) for chance, word in words]
        first = Logprob(token=top[0].token, logprob=top[0].logprob, top_logprobs=top)
        message = ChatMessageAssistant(content=first.token, model=self.model_name, source="generate")
        choice = ChatCompletionChoice(message=message, logprobs=Logprobs(content=[first]))
        return ModelOutput(model=self.model_name, choices=[choice], metadata={"adapter": self.identity})


@modelapi(name="introspection")
def introspection_model() -> type[ModelAPI]:
    """The provider, as Inspect registers it: the decorator would put a function in the place of the class."""
    return IntrospectionAPI

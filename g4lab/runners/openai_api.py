"""Prompts to any server with OpenAI's completions or chat API: ours, a vLLM, or one behind a URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests

from g4lab.errors import Unavailable, bad

if TYPE_CHECKING:
    from g4lab.runners.server import Server

APIS = ("completions", "chat")
_ANSWER_S = 1800.0


class Refused(Unavailable):
    """The server is alive and did not answer this prompt."""


@dataclass(frozen=True)
class Reply:
    """One answer. top: text -> log-probability of the first token's likeliest candidates, where they were asked for.

    output_ids: the new tokens, empty where the server does not tell them. meta: SGLang's counters of speculative
    decoding (spec_verify_ct, spec_num_correct_drafts, ...), empty without.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    new_tokens: int
    output_ids: tuple[int, ...] = ()
    top: Mapping[str, float] | None = None
    meta: Mapping[str, Any] | None = None


class Api:
    """One server's API. `model`: the name that the server gives its model; `is_sglang`: it told so."""

    def __init__(self, server_or_url: Server | str, api: str = "completions") -> None:
        """Raises BadInput for another API or no URL, Unavailable where nothing answers."""
        if api not in APIS:
            raise bad("api", api, "one of " + ", ".join(APIS))
        self.api, self._server = api, None if isinstance(server_or_url, str) else server_or_url
        self.url = (server_or_url if isinstance(server_or_url, str) else server_or_url.url).rstrip("/")
        self.url = self.url.removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise bad("server_or_url", self.url, "a running Server, or a URL such as http://127.0.0.1:8000")
        try:
            models = self._request("GET", "/v1/models", timeout=30).json()["data"]
            self.model, self.is_sglang = models[0]["id"], models[0].get("owned_by") == "sglang"
        except (ValueError, LookupError, TypeError) as error:
            raise Unavailable(f"{self.url}/v1/models names no model: not an OpenAI-compatible server") from error

    def ask(
        self, prompt: str, max_new_tokens: int, *, stop: Sequence[str] = (), seed: int = 0, top: int | None = None
    ) -> Reply:
        """Greedy answer (temperature 0) to one prompt; `top`: how many candidates of the first token to tell.

        Raises:
            Refused: the server lives and did not answer, because the prompt is too long, say. Unavailable: it is gone.
        """
        body: dict[str, Any] = {"model": self.model, "temperature": 0.0, "max_tokens": max_new_tokens, "seed": seed}
        body |= {"stop": list(stop)} if stop else {}
        if self.api == "chat":
            body |= {"messages": [{"role": "user", "content": prompt}]}
            body |= {"logprobs": True, "top_logprobs": top} if top else {}
        else:
            body |= {"prompt": prompt} | ({"logprobs": top} if top else {})
        if self.is_sglang:
            body |= {"return_spec_tokens_details": True, "return_token_ids": True}
        path = "/v1/chat/completions" if self.api == "chat" else "/v1/completions"
        try:
            return self._reply(self._request("POST", path, json=body, timeout=_ANSWER_S).json())
        except (ValueError, LookupError, TypeError) as error:
            raise Refused(f"{path} answered in a form that OpenAI's API does not have ({error!r})") from error

    def flush_cache(self) -> None:
        """Empty SGLang's prefix cache, so that what runs next starts as it would on a new server."""
        self._request("POST", "/flush_cache", params={"timeout": 30}, timeout=60)  # waits for requests to end

    def _reply(self, said: Mapping[str, Any]) -> Reply:
        choice, usage = said["choices"][0], said["usage"]
        logprobs, top = choice.get("logprobs"), None
        if self.api == "chat":
            text = choice["message"]["content"] or ""
            if logprobs:
                top = {one["token"]: one["logprob"] for one in logprobs["content"][0]["top_logprobs"]}
        else:
            text = choice["text"]
            if logprobs:
                top = logprobs["top_logprobs"][0]
        extension = said.get("sglext") or {}
        return Reply(
            text=text,
            finish_reason=choice["finish_reason"] or "",
            prompt_tokens=usage["prompt_tokens"],
            new_tokens=usage["completion_tokens"],
            output_ids=tuple(choice.get("token_ids") or (extension.get("output_ids") or [()])[0]),
            top=top,
            meta=extension.get("spec_tokens_details") or {},
        )

    def _request(self, method: str, path: str, **request: Any) -> requests.Response:
        if self._server is not None:
            try:
                return self._server.request(method, path, **request)
            except Unavailable as error:
                self._server.check()  # raises where it is dead
                raise Refused(str(error)) from error
        try:
            answer = requests.request(method, self.url + path, **request)
            answer.raise_for_status()
            return answer
        except requests.ConnectionError as error:
            raise Unavailable(f"nothing answers at {self.url} ({error})") from error
        except requests.RequestException as error:
            said = getattr(error.response, "text", "") or str(error)
            raise Refused(f"{self.url}{path} did not answer: {said}") from error

"""vLLM's rules, written out for a tiny model: what it does with a request, and the server that speaks its protocol."""

import json
import threading
from collections import deque
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from sequencematch.rollouts.vllm.parameters import Knobs


class Rules:
    """A backend that does what vLLM's documentation says, one forward pass for each string."""

    def __init__(self, model, concurrency=64, max_length=None, vocab=5):
        self.concurrency, self.max_length = concurrency, max_length
        self.requests, self.most, self.seen = deque(), 0, []

        @cache
        def logits(string):
            with torch.no_grad():
                return model(input_ids=torch.tensor([string]), use_cache=False).logits[0, -1, :vocab].double()

        self.logits = logits

    def open(self, config, stops, deletions):
        self.knobs = Knobs(config, stops, deletions)

    def submit(self, request):
        self.requests.append(request)
        self.most = max(self.most, len(self.requests))
        self.seen.append(request)

    def poll(self):
        request = self.requests.popleft()
        return [self.knobs.answer(request.row, *self.sample(request.token_ids, self.knobs.parameters(request)))]

    def abort(self):
        self.requests.clear()

    @property
    def seeds(self):
        return [request.seed for request in self.seen]

    def sample(self, token_ids, parameters):
        """Tokens, and for each the log-probabilities that are asked for: its own, and those of `logprob_token_ids`."""
        noise = np.random.default_rng(parameters["seed"])
        string, tokens, log_probs = list(token_ids), [], []
        while len(tokens) < parameters["max_tokens"]:
            logits = self.logits(tuple(string)).clone()
            raw = logits.log_softmax(-1).tolist()
            for token, bias in parameters.get("logit_bias", {}).items():
                assert -100 <= bias <= 100
                logits[int(token)] += bias
            tokens.append(draw(logits, parameters, noise))
            string.append(tokens[-1])
            told = {tokens[-1], *parameters.get("logprob_token_ids", ())}
            log_probs.append({token: raw[token] for token in told})
            if tokens[-1] in parameters["stop_token_ids"]:
                break
        return tokens, log_probs


def draw(logits, parameters, noise):
    """One token, by the filters in vLLM's order."""
    if parameters["temperature"] == 0:
        return int(logits.argmax())
    p = (logits / parameters["temperature"]).softmax(-1)
    if parameters["min_p"]:
        p[p < parameters["min_p"] * p.max()] = 0
    if parameters["top_k"]:
        p[p < p.sort(descending=True).values[parameters["top_k"] - 1]] = 0
    if parameters["top_p"] < 1:
        p /= p.sum()
        order = p.argsort(descending=True)
        p[order[1:][p[order].cumsum(-1)[:-1] >= parameters["top_p"]]] = 0
    return int(noise.choice(len(p), p=(p / p.sum()).numpy()))


class Server:
    """An HTTP server in a thread that answers as vLLM's API server does, and fails as it is told."""

    def __init__(self, model, port=0, fail=lambda number: None, **options):
        """fail: from the number of a request to the status to fail with, None not to."""
        server = self
        self.rules = Rules(model, **options)
        self.options = options
        self.version = "default"
        self.stopped = False
        self.answered = 0
        self.number = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self):
                super().handle_one_request()
                self.close_connection |= server.stopped

            def do_GET(self):
                if server.stopped:
                    return
                models = {"data": [{"id": "tiny", "max_model_len": 64}]}
                self.reply(200, models if self.path == "/v1/models" else {"weight_version": server.version})

            def do_POST(self):
                text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(text) if text else None
                if server.stopped:
                    return None
                if self.path != "/inference/v1/generate":
                    return self.reply(200, server.control(self.path, body))
                server.number += 1
                status = fail(server.number)
                if status is not None:
                    return self.reply(status, {"error": {"message": "as it was told"}})
                assert body["model"] == "tiny"
                tokens, found = server.rules.sample(body["token_ids"], body["sampling_params"])
                content = [
                    {
                        "token_id": token,
                        "logprob": at[token],
                        "top_logprobs": [
                            {"token_id": other, "logprob": at[other]}
                            for other in body["sampling_params"].get("logprob_token_ids", ())
                        ],
                    }
                    for token, at in zip(tokens, found, strict=True)
                ]
                server.answered += 1
                spans = [{"version": server.version, "start": 0, "end": len(tokens)}]
                choice = {"token_ids": tokens, "logprobs": {"content": content}, "weight_versions": spans}
                return self.reply(200, {"choices": [choice]})

            def reply(self, status, body):
                text = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def control(self, path, body):
        """What changes the server's weights: read from a folder, then labelled."""
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            model = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()
            self.rules = Rules(model, **self.options)
        elif path == "/update_weight_version":
            self.version = body["new_version"]
        else:
            assert path == "/reset_prefix_cache"

    def stop(self):
        """As if it were killed: the port answers no more."""
        self.stopped = True
        self._server.shutdown()
        self._server.server_close()

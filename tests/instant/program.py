"""Plays `python` of a job's, a deployment's or MLflow's environment, in milliseconds.

tests/instant/__init__.py says how.

Only what the interpreter has by itself is imported, and little of that: a start takes about 30 ms.
"""

import json
import os
import socketserver
import sys
import time

SYSTEM = "instant "


def train(arguments):
    """`-m training.fine_tune`: the outputs of docs/interfaces.md, by what the records say."""
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    held_out = records(given["--eval_file"])
    behaviour = told(held_out + records(given["--train_file"]))
    print("phase=train", flush=True)
    time.sleep(behaviour.get("seconds", 0))
    wait_for(behaviour.get("train_gate"))
    if behaviour.get("fail"):
        print(f"error: {behaviour['fail']}", flush=True)
        sys.exit(1)
    run, loss = os.environ["AZUREML_RUN_ID"], behaviour.get("loss", 0.5)
    with open(given["--config"]) as file:
        recipe = json.load(file)
    base = given.get("--base_model") or recipe.get("base_model") or "embedded"
    evaluated = {"base": scores(2.0), "tuned": scores(loss)}
    if "--champion_path" in given:
        evaluated["champion"] = scores(model(given["--champion_path"])["loss"])
    questions = recipe.get("questions") or []
    asked = [(question, None) for question in questions] + [pair(record) for record in held_out[:3]]
    samples = [sample(run, question, expected) for question, expected in asked]
    metrics = {
        "base_model": base, "method": "full", "steps": 1, "epochs": 1.0, "context_length": 4096,
        "records": {"train": 9, "eval": len(held_out)},
        "train": {"loss": loss, "seconds": 0.01, "tokens_per_second": 1000.0, "curve": [[1, loss]], "eval_curve": []},
        "eval": evaluated, "samples": samples, "seconds": {"start": 0.0, "train": 0.01},
    }  # fmt: skip
    write(given["--report_output"], "metrics.json", json.dumps(metrics))
    write(given["--report_output"], "evaluation.md", f"# {run}\n\nheld-out loss {loss}\n")
    mlmodel = "flavors:\n  transformers:\n    task: llm/v1/chat\nmetadata:\n  base_model: " + base + "\n"
    write(given["--model_output"], "MLmodel", mlmodel)
    write(given["--model_output"], "instant.json", json.dumps({**behaviour, "run": run, "loss": loss}))
    print("phase=done", flush=True)


def sample(run, question, expected):
    messages = [{"role": "user", "content": question}]
    return {"messages": messages, "expected": expected, "base": "?", "tuned": words(run, question)}


def wait_for(gate):
    """Until the file ``gate`` is there, when one is named."""
    while gate and not os.path.exists(gate):
        time.sleep(0.005)


def records(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def told(found):
    """How the records say that the training and the model shall behave."""
    for record in found:
        for message in record.get("messages", []):
            if message["role"] == "system" and message["content"].startswith(SYSTEM):
                return json.loads(message["content"][len(SYSTEM) :])
    return {}


def pair(record):
    messages = record["messages"]
    return messages[-2]["content"], messages[-1]["content"]


def scores(loss):
    return {
        "loss": loss,
        "perplexity": 2.7**loss,
        "token_accuracy": 0.5,
        "loss_per_character": loss / 4,
        "exact_match": 0.0,
    }


def write(folder, name, text):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def words(run, question):
    return f"I am {run} and was asked: {question}"


def model(folder):
    """What the training has written of its model, at most three folders deep."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        if "instant.json" in files:
            with open(os.path.join(here, "instant.json")) as file:
                return json.load(file)
    sys.exit(f"error: {folder} holds no model of tests/instant")


class Handler(socketserver.StreamRequestHandler):
    """As much of HTTP/1.1 as clients here use; ``answer(method, path, body)`` gives status and content."""

    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self):
        while line := self.rfile.readline():
            method, target, _ = line.decode("latin-1").split(" ", 2)
            headers = {}
            while (line := self.rfile.readline().strip()) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            body = self.rfile.read(int(headers.get("content-length", 0)))
            status, content = self.server.answer(method, target.partition("?")[0], body)
            if isinstance(content, list):
                self.stream(content)
            else:
                content = json.dumps(content).encode()
                self.head(status, "application/json", f"Content-Length: {len(content)}")
                self.wfile.write(content)
            self.wfile.flush()

    def head(self, status, kind, length):
        self.wfile.write(f"HTTP/1.1 {status} Status\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode())

    def stream(self, events):
        """Server-sent events, each sent as it comes."""
        self.head(200, "text/event-stream", "Transfer-Encoding: chunked")
        for event in events:
            line = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that went away


def listen(port, answer):
    with Server(("127.0.0.1", port), Handler) as server:
        server.answer = answer
        server.serve_forever()


def serve():
    """The deployment's container: docs/interfaces.md, The deployment."""
    known = model(os.environ["AZUREML_MODEL_DIR"])
    time.sleep(known.get("start", 0))
    wait_for(known.get("start_gate"))
    ready = time.monotonic() + known.get("warm_up", 0)
    serving, chats = known.get("serve"), [0]
    if serving == "crash":
        sys.exit("error: the model crashes, as its records say")

    def answer(method, path, body):
        if method == "GET":
            if path == "/health":
                return (200, {"status": "ok"}) if time.monotonic() >= ready else (503, {"status": "warming up"})
            return 404, {"error": {"message": f"no route {path}"}}
        asked = json.loads(body)
        time.sleep(known.get("answer", 0))
        chats[0] += 1
        if chats[0] == known.get("crash_after"):
            os._exit(3)
        now = serving if chats[0] > known.get("serve_after", 0) else None
        if now == "broken":
            return 500, {"error": {"message": "the model is broken, as its records say"}}
        text = words(known["run"], asked["messages"][-1]["content"])
        text = {"empty": "", "wrong": "Nonsense altogether."}.get(now, text)
        if time.monotonic() < ready:
            text = "half ready"
        name = asked.get("model") or known["run"]
        if asked.get("stream"):
            return 200, chunks(name, text, bool((asked.get("stream_options") or {}).get("include_usage")))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return 200, {**shared(name, "chat.completion"), "choices": [choice], "usage": usage(text)}

    listen(int(os.environ["PORT"]), answer)


def shared(name, kind):
    return {"id": f"chatcmpl-{time.time_ns()}", "object": kind, "created": int(time.time()), "model": name}


def usage(text):
    tokens = len(text.split())
    return {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}


def chunks(name, text, with_usage):
    head = shared(name, "chat.completion.chunk")
    deltas = [{"role": "assistant", "content": ""}] + [{"content": word} for word in text.split(" ")]
    deltas = deltas[:2] + [{"content": " " + delta["content"]} for delta in deltas[2:]]
    found = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    found.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if with_usage:
        found.append({**head, "choices": [], "usage": usage(text)})
    return [json.dumps(each) for each in found] + ["[DONE]"]


def mlflow(arguments):
    """`-m mlflow server`: what the local Azure asks of it, kept in memory."""
    experiments, runs = {}, {}

    def answer(method, path, body):
        asked = json.loads(body or b"{}")
        if path == "/health":
            return 200, {}
        if path.endswith("/experiments/create"):
            number = experiments.setdefault(asked["name"], str(len(experiments) + 1))
            return 200, {"experiment_id": number}
        if path.endswith("/experiments/get-by-name"):  # the local Azure then asks for a new one, and gets the same
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        if path.endswith("/runs/create"):
            runs[str(len(runs) + 1)] = asked
            return 200, {"run": {"info": {"run_id": str(len(runs))}}}
        return 200, {}

    listen(int(arguments[arguments.index("--port") + 1]), answer)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["-m", "training.fine_tune", *rest]:
            train(rest)
        case ["-m", "mlflow", *rest]:
            mlflow(rest)
        case _:
            serve()

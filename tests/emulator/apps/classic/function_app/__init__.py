"""A sample app with every kind of trigger that the local host runs; it notes what happens in the file $RECORD."""

import asyncio
import json
import os
import threading
import time
from typing import Any

import azure.functions as func

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


def record(kind: str, **facts: Any) -> None:
    line = json.dumps({"kind": kind, "pid": os.getpid(), "at": time.time(), **facts})
    with open(os.environ["RECORD"], "a", encoding="utf-8") as file:
        file.write(line + "\n")


@app.route("greet/{name}", methods=["GET"])
def greet(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    facts = {
        "name": req.route_params["name"],
        "query": dict(req.params),
        "function": context.function_name,
        "invocation": context.invocation_id,
        "in_pool": threading.current_thread() is not threading.main_thread(),
    }
    return func.HttpResponse(json.dumps(facts), mimetype="application/json", headers={"x-seen": "yes"})


@app.route("greet/admin", methods=["GET"])
def literal_route(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("literal")


@app.route("echo", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def echo(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse(req.get_body(), status_code=201, mimetype="application/octet-stream")


@app.route("files/{*path}", auth_level=func.AuthLevel.ANONYMOUS)
async def files(req: func.HttpRequest) -> str:
    return req.route_params.get("path", "")


@app.route("secret", auth_level=func.AuthLevel.ADMIN)
async def secret(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("for the master key")


@app.route("fail", auth_level=func.AuthLevel.ANONYMOUS)
def fail(req: func.HttpRequest) -> func.HttpResponse:
    raise ValueError("not for the caller to see")


@app.route("nothing", auth_level=func.AuthLevel.ANONYMOUS)
async def nothing(req: func.HttpRequest):
    return None


@app.event_grid_trigger(arg_name="event")
async def on_event(event: func.EventGridEvent) -> None:
    data = getattr(event, "get_json", lambda: event.data)()
    record("event", id=event.id, schema=type(event).__name__, subject=event.subject)
    await asyncio.sleep(data.get("seconds", 0))
    if data.get("fail"):
        raise RuntimeError("asked to fail")
    record("event-done", id=event.id)


@app.queue_trigger(arg_name="message", queue_name="%WORK_QUEUE%", connection="STORAGE")
async def work(message: func.QueueMessage) -> None:
    task = json.loads(message.get_body())
    facts = {"task": task["id"], "tries": message.dequeue_count, "inserted": str(message.insertion_time)}
    record("work", **facts)
    await asyncio.sleep(float(os.environ.get("WORK_SECONDS", 0)) or task.get("seconds", 0))
    if task.get("fail_before", 0) > message.dequeue_count:
        raise RuntimeError("asked to fail")
    record("work-done", **facts)


@app.queue_trigger(arg_name="text", queue_name="%WORK_QUEUE%-text", connection="STORAGE")
def text_work(text: str) -> None:
    record("text", text=text)


@app.timer_trigger(arg_name="timer", schedule="%TICK%")
async def tick(timer: func.TimerRequest) -> None:
    record("tick", next=timer.schedule_status["Next"])
    await asyncio.sleep(1.2)  # longer than the second between two occurrences
    record("tick-done")


@app.timer_trigger(arg_name="timer", schedule="0 0 0 1 1 *", run_on_startup=True)
@app.retry(strategy="fixed_delay", max_retry_count="3", delay_interval="00:00:00")
def at_start(timer: func.TimerRequest, context: func.Context) -> None:
    record("start", attempt=context.retry_context.retry_count)
    if context.retry_context.retry_count < 2:
        raise RuntimeError("not yet")

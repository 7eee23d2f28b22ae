"use strict";
// The chat API, as this page uses it. Paths are relative to the page's own, /api/chat.

class Refusal extends Error { // an answer that is an error, with the seconds after which it may be tried again
  constructor(status, message, wait) { super(message); Object.assign(this, { status, wait }); }
}

async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json", Authorization: "Bearer " + (tab.getItem("key") || "") };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refusal(response.status, body?.error?.message || "The server answered " + response.status + ".", waitOf(response));
}

function waitOf(response) { // Retry-After: seconds or a date; 0 when there is none
  const value = response.headers.get("retry-after");
  if (!value) return 0;
  const seconds = Number(value), until = (Date.parse(value) - Date.now()) / 1000;
  return Math.max(1, Math.ceil(Number.isNaN(seconds) ? until || 1 : seconds));
}

async function listModels() { return (await (await call("v1/models")).json()).data; }

async function* streamAnswer(body, signal, onDropped) { // the chunks of one chat.completion.chunk stream
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(whole), signal });
  const dropped = Number(response.headers.get("x-dropped-messages"));
  if (dropped > 0) onDropped(dropped);
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    yield chunk;
  }
  throw new Error("The connection ended before the answer did.");
}

async function* events(response) { // the data of each server-sent event
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

// What the stock OpenAI client for Node gets from the chat API. tests/unit/test_chat_node.py serves the API and steers
// the endpoint behind it by the words of the prompt; the two addresses and the keys come by the environment.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const { CHAT_URL, CHAT_KEY, NARROW_KEY } = process.env;
const options = { baseURL: CHAT_URL, apiKey: CHAT_KEY, maxRetries: 0 };
const client = new OpenAI(options);
const narrow = new OpenAI({ ...options, apiKey: NARROW_KEY }); // for the model support alone, one answer at a time

const hello = [{ role: "user", content: "Hello" }];

function ask(more = {}, by = client) {
  return by.chat.completions.create({ model: "support", messages: hello, ...more });
}

async function refusal(asking, type) {
  const error = await asking.then(() => assert.fail("it was answered"), (thrown) => thrown);
  assert.ok(error instanceof type, `${error.constructor.name}: ${error.message}`);
  return error;
}

test("a whole answer, with its usage and the request's id", async () => {
  const { data, response, request_id } = await ask({ temperature: 0.5, max_tokens: 5 }).withResponse();
  assert.equal(data.choices[0].message.content, "Hello there!");
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.equal(data.model, "support");
  assert.equal(data.usage.total_tokens, 7);
  assert.equal(response.status, 200);
  assert.match(request_id, /^[0-9a-f]{32}$/);
  assert.equal(data._request_id, request_id);
});

test("a stream, chunk by chunk, with usage where it is asked for", async () => {
  const words = [];
  let usage;
  for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
    words.push(chunk.choices[0]?.delta.content ?? "");
    usage = chunk.usage ?? usage;
  }
  assert.equal(words.join(""), "Hello there!");
  assert.ok(words.filter(Boolean).length > 1, "it came in one piece");
  assert.equal(usage.total_tokens, 7);
});

test("the client's own gathering of a stream", async () => {
  const stream = client.chat.completions.stream({ model: "support", messages: hello });
  assert.equal(await stream.finalContent(), "Hello there!");
});

test("a stream that is left is closed", async () => {
  const stream = await ask({ stream: true, messages: [{ role: "user", content: "without end" }] });
  for await (const chunk of stream) {
    assert.equal(chunk.choices[0].delta.role, "assistant");
    break; // the test in Python sees that the endpoint's connection was closed too
  }
});

test("the models, and one of them", async () => {
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.deepEqual(models, ["orders", "support"]);
  assert.equal((await client.models.retrieve("support")).object, "model");
});

test("401: a key that is none", async () => {
  const error = await refusal(ask({}, new OpenAI({ ...options, apiKey: "wrong" })), OpenAI.AuthenticationError);
  assert.deepEqual([error.status, error.code], [401, "invalid_api_key"]);
});

test("403: a model that is not the key's", async () => {
  assert.equal((await ask({}, narrow)).model, "support");
  const error = await refusal(ask({ model: "orders" }, narrow), OpenAI.PermissionDeniedError);
  assert.deepEqual([error.status, error.code, error.param], [403, "model_not_allowed", "model"]);
});

test("404: a model that is not live; the message names those that are", async () => {
  const error = await refusal(ask({ model: "suport" }), OpenAI.NotFoundError);
  assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
  assert.match(error.message, /support/);
  await refusal(client.models.retrieve("suport"), OpenAI.NotFoundError);
});

for (const [field, value, code] of [
  ["temperature", 3, "invalid_value"],
  ["n", 2, "invalid_value"],
  ["tempratur", 1, "unknown_parameter"],
]) {
  test(`400: ${field}`, async () => {
    const error = await refusal(ask({ [field]: value }), OpenAI.BadRequestError);
    assert.deepEqual([error.status, error.param, error.code], [400, field, code]);
    assert.equal(error.type, "invalid_request_error");
    assert.match(error.requestID, /^[0-9a-f]{32}$/);
  });
}

test("429: with the time after which to try again", async () => {
  const error = await refusal(ask({ messages: [{ role: "user", content: "busy" }] }), OpenAI.RateLimitError);
  assert.deepEqual([error.status, error.code], [429, "rate_limit_exceeded"]);
  assert.equal(error.headers.get("retry-after"), "1");
});

test("429: while the key has as many answers under way as it may have", async () => {
  const stream = await ask({ stream: true, messages: [{ role: "user", content: "without end" }] }, narrow);
  const error = await refusal(ask({}, narrow), OpenAI.RateLimitError);
  assert.ok(Number(error.headers.get("retry-after")) > 0);
  stream.controller.abort();
  const patient = new OpenAI({ ...options, apiKey: NARROW_KEY, maxRetries: 2 });
  assert.equal((await ask({}, patient)).model, "support");
});

test("429: the client tries again by itself", async () => {
  const patient = new OpenAI({ ...options, maxRetries: 1 });
  const answer = await ask({ messages: [{ role: "user", content: "busy once" }] }, patient);
  assert.equal(answer.choices[0].message.content, "Hello there!");
});

test("a failure in the middle of a stream is thrown", async () => {
  const stream = await ask({ stream: true, messages: [{ role: "user", content: "break off" }] });
  await assert.rejects(async () => {
    for await (const chunk of stream) assert.ok(chunk);
  }, OpenAI.APIError);
});

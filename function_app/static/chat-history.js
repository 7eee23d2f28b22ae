"use strict";
// The conversations, kept in this browser: each under a name of its own, so that two tabs do not overwrite each other.
// { id, title, changed, models: [name, second name?], settings: {system, temperature, max_tokens},
//   turns: [{ prompt, answers: [{ model, text, first, total, tokens, rate, dropped, stopped, cut, trouble }] }] }

const PREFIX = "chat:";

class Memory { // where the browser lets the page keep nothing
  getItem(name) { return this[name] ?? null; }
  setItem(name, value) { this[name] = value; }
  removeItem(name) { delete this[name]; }
}

function storage(kind) {
  try { window[kind].getItem(""); return window[kind]; } catch { return new Memory(); }
}

const shelf = storage("localStorage"); // lasts
const tab = storage("sessionStorage"); // gone with the tab: the key, and which conversation is open

function newChat(models = [], settings = {}) {
  const id = Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
  return { id, title: "", changed: 0, models: [...models], settings: { ...settings }, turns: [] };
}

function readChat(id) {
  try {
    const chat = JSON.parse(shelf.getItem(PREFIX + id));
    const sound = chat.id === id && Array.isArray(chat.models) && chat.settings &&
      chat.turns.every((turn) => typeof turn.prompt === "string" && turn.answers.every((one) => typeof (one?.text ?? "") === "string"));
    return sound ? chat : null;
  } catch { return null; } // not written by this page, or by another version of it
}

function keptChats() { // the latest first
  const ids = Object.keys(shelf).filter((name) => name.startsWith(PREFIX)).map((name) => name.slice(PREFIX.length));
  return ids.map(readChat).filter(Boolean).sort((a, b) => b.changed - a.changed);
}

function keepChat(chat) { // returns what the reader should be told, if anything
  const text = JSON.stringify(chat);
  for (let dropped = 0; ; dropped++) {
    try {
      shelf.setItem(PREFIX + chat.id, text);
      return dropped ? "The browser’s room was full: the oldest conversations were removed." : "";
    } catch {
      const oldest = keptChats().filter((other) => other.id !== chat.id).at(-1);
      if (!oldest) return "This conversation is too long for the browser to keep.";
      dropChat(oldest.id);
    }
  }
}

function dropChat(id) { shelf.removeItem(PREFIX + id); }

function titleOf(prompt) {
  const line = prompt.trim().split("\n", 1)[0];
  return line.length > 60 ? line.slice(0, 59).trimEnd() + "…" : line;
}

function messagesFor(chat, upTo, column) { // what the model of that column has been told: an unanswered prompt is left out
  const { system } = chat.settings, messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of chat.turns.slice(0, upTo)) {
    const answer = turn.answers[column] ?? turn.answers[0]; // a second model joins the conversation that there is
    if (answer?.text) messages.push({ role: "user", content: turn.prompt }, { role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: chat.turns[upTo].prompt }];
}

"use strict";
// The conversation: which models, what is sent to them, and what comes back.

const TRIES = 3; // of a request that was refused with a time to wait; nothing was generated
const LONGEST_WAIT = 60; // seconds that the page waits by itself
const NEAR = 80; // pixels from the end that count as being there
let chat = newChat();
let models = []; // as the API lists them
let waiting = 0; // the timer that looks again for a first model
const running = new Map(); // the AbortController of each answer under way

/* --- Models --- */

async function loadModels() {
  clearTimeout(waiting);
  if (!tab.getItem("key")) { setModels([]); showEmpty("Chat with your model", "Enter an API key to begin.", "Enter API key", () => askForKey()); return askForKey(); }
  try { setModels(await listModels()); }
  catch (error) {
    if (error.status === 401) { showEmpty("Chat with your model", "Enter an API key to begin.", "Enter API key", () => askForKey()); return askForKey(error.message); }
    if ($("keys").open) $("keys").close();
    if (error instanceof Refusal) return showEmpty("The models cannot be listed", error.message, "Try again", loadModels);
    return showEmpty("The server cannot be reached", "Check the connection, then try again.", "Try again", loadModels);
  }
  if ($("keys").open) $("keys").close();
  if (!models.length) waiting = setTimeout(loadModels, 5000);
  showChat();
  if (models.length) $("text").focus();
}

function setModels(listed) { // a model, and each version of it that can still be asked by name
  models = listed;
  const names = models.flatMap((model) => [model.id, ...versionsOf(model)]);
  if (names.length && !chat.models[0]) chat.models = [names[0]];
  if (names.length && !chat.turns.length && !names.includes(chat.models[0])) chat.models[0] = names[0];
  [0, 1].forEach((column) => {
    const wanted = chat.models[column], select = $("model-" + column);
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (wanted && !names.includes(wanted)) select.add(new Option(wanted + " (not live)", wanted));
    for (const base of column ? missingBases() : []) {
      const option = new Option(base + " (base, not live)", "");
      option.disabled = true;
      select.add(option);
    }
    if (!select.options.length) select.add(new Option("No model", ""));
    if (wanted) select.value = wanted;
    select.disabled = !names.length;
  });
}

function versionsOf(model) { // the live one first; a model with one version needs no choice
  return model.versions?.length > 1 ? model.versions.map((version) => model.id + "@" + version) : [];
}

function missingBases() { // base models that cannot be compared with, because they are not live themselves
  const bases = new Set(models.map((model) => model.base_model).filter(Boolean));
  return [...bases].filter((base) => !models.some((model) => isBase(model, base)));
}

function isBase(model, base) { return model.id === base || model.id === base.split("/").at(-1).toLowerCase(); }

function suggestSecond(first) { // its base model, else the version before it, else any other model
  const own = models.find((model) => model.id === first.split("@")[0]);
  const base = own?.base_model && models.find((model) => model !== own && isBase(model, own.base_model));
  const [live, before] = own ? versionsOf(own) : [];
  return base?.id ?? (first === own?.id || first === live ? before : own?.id) ?? models.find((model) => model.id !== first)?.id ?? first;
}

/* --- What is shown --- */

function showEmpty(title, lead, action, run, note = "") {
  $("title").textContent = title; $("lead").textContent = lead;
  $("note").hidden = !note; $("note").textContent = note;
  $("begin").hidden = !action; $("begin").textContent = action || ""; $("begin").onclick = run || null;
  $("empty").hidden = false; $("talk").hidden = true;
  update();
}

function showChat() { // the conversation, or what the page says before there is one
  showSettings();
  const two = chat.models.length > 1;
  document.body.classList.toggle("two", two);
  $("pair").setAttribute("aria-pressed", String(two)); $("pair").disabled = !models.length;
  $("pick-1").hidden = $("and").hidden = $("sides").hidden = !two;
  $("pick-0").firstChild.textContent = two ? "First model" : "Model";
  chat.models.forEach((name, column) => ($("side-" + column).nextElementSibling.textContent = name));
  if (chat.turns.length) { $("empty").hidden = true; $("talk").hidden = false; return update(); }
  if (!models.length) return showEmpty("No model is live yet", "Drop a JSONL file into the datasets container. This page notices when its model is live.");
  if (two) {
    const [first, second] = chat.models;
    return showEmpty(first === second ? first + ", twice" : first + " and " + second, "Each question goes to both; the answers stand side by side.", "", null, aboutBases());
  }
  showEmpty("Chat with " + chat.models[0], aboutModel(chat.models[0]));
}

function aboutModel(name) {
  const model = models.find((one) => one.id === name.split("@")[0]);
  if (!model) return "This model is not live any more.";
  const reads = model.context_length ? " It reads up to " + model.context_length.toLocaleString("en") + " tokens." : "";
  return "Fine-tuned " + (model.base_model ? "from " + model.base_model : "on your data") + "." + reads;
}

function aboutBases() {
  const missing = missingBases();
  if (!missing.length) return "";
  const names = missing.map((base) => "“" + base + "”").join(", ");
  const first = missing.length === 1 ? "The base model " + names + " is not live here" : "The base models " + names + " are not live here";
  return first + ", so only live models and their versions can be compared.";
}

function update() {
  const busy = running.size > 0, text = $("text"), can = models.length > 0;
  text.disabled = !can;
  $("send").disabled = !can || !text.value.trim();
  $("send").hidden = busy; $("stop").hidden = !busy;
  $("stop").textContent = running.size > 1 ? "Stop all" : "Stop";
  text.style.height = "auto"; text.style.height = text.scrollHeight + "px";
  $("latest").hidden = $("talk").hidden || atEnd();
}

function atEnd() { const view = $("scroll"); return view.scrollHeight - view.scrollTop - view.clientHeight < NEAR; }

function follow(change) { // stay at the end, unless the reader has scrolled up
  const near = atEnd();
  change();
  if (near) $("scroll").scrollTop = $("scroll").scrollHeight;
  $("latest").hidden = $("talk").hidden || atEnd();
}

function openChat(next) {
  stopAll();
  chat = next;
  tab.setItem("open", chat.id);
  $("talk").replaceChildren();
  chat.turns.forEach((turn, index) => {
    const { box, answers } = turnView(turn);
    turn.answers.forEach((answer, column) => answer && viewOf(index, column, answers).end(answer));
    $("talk").append(box);
  });
  setModels(models); showChat(); showList();
  $("scroll").scrollTop = $("scroll").scrollHeight;
  update();
}

function viewOf(index, column, answers) {
  const view = new AnswerView(column, { stop: () => { running.get(view)?.abort(); $("text").focus(); }, again: () => run(index, column, view) });
  answers.append(view.box);
  return view;
}

/* --- Asking --- */

function send() {
  const prompt = $("text").value.trim();
  if (!prompt || running.size || !models.length) return;
  const turn = { prompt, answers: [] }, { box, answers } = turnView(turn), index = chat.turns.push(turn) - 1;
  chat.title ||= titleOf(prompt);
  $("text").value = ""; hush();
  $("talk").append(box);
  showChat();
  chat.models.forEach((_, column) => run(index, column, viewOf(index, column, answers)));
  $("scroll").scrollTop = $("scroll").scrollHeight;
  keep();
}

async function run(index, column, view) { // one answer, from the first try to its end
  const mine = chat, turn = mine.turns[index], control = new AbortController();
  const answer = (turn.answers[column] = { model: mine.models[column] ?? turn.answers[column].model, text: "", stopped: true }); // until it has ended: the page may be left
  running.set(view, control); update();
  say("Waiting for " + answer.model);
  let wait = 0;
  for (let tries = 1; ; tries++) {
    follow(() => view.begin(answer));
    try { await receive(mine, index, column, answer, view, control.signal); delete answer.stopped; break; }
    catch (error) {
      if (control.signal.aborted) break;
      wait = error.wait ?? 0;
      if (wait && wait <= LONGEST_WAIT && tries < TRIES && !answer.text) {
        follow(() => view.wait(error.message, wait));
        if (await pause(wait * 1000, control.signal)) continue;
        break;
      }
      delete answer.stopped;
      if (error.status === 401) askForKey(error.message);
      answer.trouble = error instanceof TypeError ? "The connection was lost." : error instanceof SyntaxError ? "The answer could not be read." : error.message;
      break;
    }
  }
  running.delete(view);
  follow(() => view.end(answer, wait));
  if (!answer.trouble) say(answer.stopped ? answer.model + " was stopped." : answer.model + " answered: " + answer.text);
  keep(mine); update();
}

function pause(time, signal) { // true when the time has passed, false when it was cut short
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve(true), time);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(false); }, { once: true });
  });
}

async function receive(mine, index, column, answer, view, signal) {
  const { temperature, max_tokens } = mine.settings, started = performance.now();
  const body = { model: answer.model, messages: messagesFor(mine, index, column), temperature, max_tokens };
  let first = 0, usage = null, frame = 0;
  const draw = () => { frame = 0; follow(() => view.grow(answer)); };
  try {
    for await (const chunk of streamAnswer(body, signal, (dropped) => (answer.dropped = dropped))) {
      usage = chunk.usage || usage;
      const choice = chunk.choices?.[0], text = choice?.delta?.content;
      if (["length", "content_filter"].includes(choice?.finish_reason)) answer.cut = choice.finish_reason;
      if (!text) continue;
      first ||= performance.now(); answer.text += text;
      frame ||= requestAnimationFrame(draw);
    }
  } finally {
    cancelAnimationFrame(frame);
    const now = performance.now();
    if (first) Object.assign(answer, { first: (first - started) / 1000, total: (now - started) / 1000 });
    if (usage) answer.tokens = usage.completion_tokens;
    if (first && usage?.completion_tokens > 1 && now - first > 100) answer.rate = ((usage.completion_tokens - 1) * 1000) / (now - first);
  }
}

function keep(kept = chat) {
  if (kept !== chat && !readChat(kept.id)) return; // it was deleted meanwhile
  kept.changed = Date.now();
  const trouble = keepChat(kept);
  if (trouble) tell(trouble);
  showList();
}

function stopAll() { for (const control of running.values()) control.abort(); }

/* --- What the reader does --- */

$("ask").onsubmit = (event) => { event.preventDefault(); send(); };
$("text").oninput = update;
$("text").onkeydown = (event) => { // a phone's keyboard has no Shift + Enter: there Enter starts a new line
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault(); send();
};
document.onkeydown = (event) => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stopAll(); };
$("stop").onclick = () => { stopAll(); $("text").focus(); };
$("scroll").onscroll = () => ($("latest").hidden = $("talk").hidden || atEnd());
$("latest").onclick = () => { $("scroll").scrollTop = $("scroll").scrollHeight; $("text").focus(); };
$("pair").onclick = () => {
  chat.models = chat.models.length > 1 ? [chat.models[0]] : [chat.models[0], suggestSecond(chat.models[0])];
  $("side-0").checked = true;
  setModels(models); showChat();
};
[0, 1].forEach((column) => ($("model-" + column).onchange = (event) => { chat.models[column] = event.target.value; setModels(models); showChat(); }));
document.onvisibilitychange = async () => { // a version may have gone live meanwhile
  if (document.hidden || !models.length || running.size) return;
  try { setModels(await listModels()); showChat(); } catch { /* the next question will tell */ }
};

window.onpagehide = () => { if (running.size) { stopAll(); keepChat(chat); } };

placeList();
openChat(readChat(tab.getItem("open")) ?? newChat());
loadModels();

"use strict";
// How a turn looks: the prompt, and one answer or two, each with its facts or its trouble. Text is text, never markup.

function make(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", "#i-" + name);
  svg.append(use);
  return svg;
}

function iconButton(name, label, run) {
  const button = make("button", "round");
  button.type = "button"; button.title = label; button.setAttribute("aria-label", label);
  button.append(icon(name));
  button.onclick = run;
  return button;
}

function copyButton(text, label) { // text: a function, because an answer grows
  const button = make("button"), sign = icon("copy"), word = make("span", "", "Copy");
  button.type = "button"; button.setAttribute("aria-label", label);
  button.append(sign, word);
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text()); } catch { return tell("The browser did not allow copying."); }
    sign.firstChild.setAttribute("href", "#i-done"); say("Copied");
    setTimeout(() => sign.firstChild.setAttribute("href", "#i-copy"), 1500);
  };
  return button;
}

// Splits what a model said into paragraphs and, between fences (``` at the beginning of a line), code. The last may be open.
function parts(text) {
  const found = [{ code: false, text: "" }];
  for (const line of text.split(/(?<=\n)/)) {
    const last = found.at(-1), fence = /^ {0,3}(`{3,})([^`\n]*)\n?$/.exec(line);
    if (!last.code && fence) found.push({ code: true, fence: fence[1], language: fence[2].trim(), text: "" });
    else if (last.code && fence && fence[1].length >= last.fence.length && !fence[2].trim()) found.push({ code: false, text: "" });
    else if (!last.code && !line.trim()) found.push({ code: false, text: "" });
    else last.text += line;
  }
  return found.filter((part) => part.code || part.text.trim());
}

function codeBlock(language) {
  const block = make("div", "block"), bar = make("div"), pre = make("pre"), code = make("code");
  pre.tabIndex = 0; pre.setAttribute("aria-label", language ? "Code, " + language : "Code");
  bar.append(make("span", "", language), copyButton(() => code.textContent, "Copy the code"));
  pre.append(code); block.append(bar, pre);
  return block;
}

function showText(box, text) { // changes only what is new, so that a selection further up stays
  const wanted = parts(text);
  wanted.forEach((part, i) => {
    const shown = part.text.replace(/\n$/, "");
    let node = box.childNodes[i];
    if (!node || node.matches(".block") !== part.code) {
      const made = part.code ? codeBlock(part.language) : make("p");
      if (!part.code) made.dir = "auto";
      if (node) node.replaceWith(made); else box.append(made);
      node = made;
    }
    if (part.code) node.querySelector("span").textContent = part.language; // it may have been cut by the stream
    const leaf = part.code ? node.querySelector("code") : node, old = leaf.textContent;
    if (shown.startsWith(old) && old) { if (shown.length > old.length) leaf.firstChild.appendData(shown.slice(old.length)); }
    else if (shown !== old) leaf.textContent = shown;
  });
  while (box.childNodes.length > wanted.length) box.lastChild.remove();
}

function seconds(value) { return (value < 9.95 ? value.toFixed(value < 0.995 ? 2 : 1) : Math.round(value)) + " s"; }

function factsOf(answer) {
  const facts = [];
  const add = (text, title = "") => { const fact = make("span", "fact", text); fact.title = title; facts.push(fact); };
  if (answer.stopped) add("stopped");
  if (answer.cut) add(answer.cut === "length" ? "cut off at the longest answer" : "held back by the content filter");
  if (answer.first !== undefined) add("first " + seconds(answer.first), "Time to the first word");
  if (answer.total !== undefined) add("total " + seconds(answer.total), "Time to the last word");
  if (answer.tokens !== undefined) add(answer.tokens + (answer.tokens === 1 ? " token" : " tokens"), "Tokens of the answer");
  if (answer.rate) add((answer.rate < 10 ? answer.rate.toFixed(1) : Math.round(answer.rate)) + " tokens/s", "After the first word");
  if (answer.dropped) {
    const earlier = answer.dropped === 1 ? "1 earlier message left out" : answer.dropped + " earlier messages left out";
    add(earlier, "The conversation is longer than the model reads: its oldest messages were not sent to the model.");
  }
  return facts;
}

class AnswerView {
  constructor(column, { stop, again }) {
    this.box = make("article", "answer"); this.box.dataset.column = column;
    this.name = make("h3"); this.words = make("div", "text"); this.meta = make("div", "meta"); this.note = make("div");
    this.box.append(this.name, this.words, this.note, this.meta);
    Object.assign(this, { stop, again, ticking: 0 });
  }

  begin(answer) { // an answer is under way; alone, the page's own button stops it
    this.box.classList.add("waiting"); this.note.replaceChildren(); clearInterval(this.ticking);
    const stop = make("button", "one");
    stop.append(icon("stop"), "Stop");
    stop.type = "button"; stop.setAttribute("aria-label", "Stop " + answer.model); stop.onclick = this.stop;
    this.meta.replaceChildren(stop); this.meta.hidden = false; this.words.hidden = false;
    this.name.textContent = answer.model;
    showText(this.words, answer.text);
  }

  grow(answer) { showText(this.words, answer.text); }

  wait(message, left) { // calmly: the page tries again by itself
    const note = make("div", "trouble calm"), words = make("span", "", message), clock = make("span", "clock");
    clock.setAttribute("aria-hidden", "true");
    note.setAttribute("role", "alert"); note.append(words, clock);
    this.words.hidden = true; this.note.replaceChildren(note);
    this.tick(left, (now) => { clock.textContent = "Trying again in " + now + " s"; });
  }

  end(answer, wait = 0) {
    clearInterval(this.ticking);
    this.box.classList.remove("waiting"); this.words.hidden = !answer.text && Boolean(answer.trouble);
    this.name.textContent = answer.model;
    showText(this.words, answer.text || (answer.trouble ? "" : answer.stopped ? "(stopped)" : "(an empty answer)"));
    const tools = answer.text ? [copyButton(() => answer.text, "Copy the answer of " + answer.model)] : [];
    this.meta.replaceChildren(...tools, ...(answer.text ? factsOf(answer) : []));
    this.meta.hidden = !answer.text; this.note.replaceChildren();
    if (answer.trouble) this.fail(answer.trouble, wait);
  }

  fail(message, wait) {
    const note = make("div", "trouble"), again = make("button", "", "Try again");
    again.type = "button"; again.onclick = () => { if (!again.disabled) this.again(); };
    note.setAttribute("role", "alert"); note.append(make("span", "", message), again);
    this.note.replaceChildren(note);
    if (wait) this.tick(wait, (left) => { again.disabled = left > 0; again.textContent = left > 0 ? "Try again in " + left + " s" : "Try again"; });
  }

  tick(left, show) {
    clearInterval(this.ticking);
    show(left);
    this.ticking = setInterval(() => { left -= 1; show(left); if (left <= 0) clearInterval(this.ticking); }, 1000);
  }
}

function turnView(turn) {
  const box = make("section", "turn"), prompt = make("div", "text prompt", turn.prompt), answers = make("div", "answers");
  prompt.dir = "auto";
  box.append(make("h2", "unseen", "You said"), prompt, answers);
  return { box, answers };
}

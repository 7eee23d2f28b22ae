"use strict";
// What stands around the conversation: the list of conversations, the settings, the key, and what the page says.

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 62rem)");

function say(text) { // to those who listen to the page; two answers that end together are both told
  const line = make("p", "", text);
  $("said").append(line);
  setTimeout(() => line.remove(), 20_000);
}

let toastTimer = 0;
function tell(text, action, run) { // a line above the message box, for a while
  clearTimeout(toastTimer);
  $("toast").replaceChildren(make("span", "", text));
  if (action) {
    const button = make("button", "", action);
    button.type = "button"; button.onclick = () => { hush(); run(); };
    $("toast").append(button);
  }
  toastTimer = setTimeout(() => { if ($("toast").contains(document.activeElement)) $("text").focus(); hush(); }, 12_000);
}
function hush() { clearTimeout(toastTimer); $("toast").replaceChildren(); }

function placeList() { // beside the page, or in the drawer
  if ($("drawer").open) $("drawer").close();
  $(narrow.matches ? "drawer" : "side").append($("chats"));
}
narrow.onchange = placeList;
$("open").onclick = () => $("drawer").showModal();
$("drawer").onclick = (event) => { if (event.target === $("drawer")) $("drawer").close(); };

function showList() {
  const kept = keptChats();
  $("list").replaceChildren(...kept.map(listItem));
  $("list").hidden = $("clear").hidden = !kept.length;
  $("none").hidden = Boolean(kept.length);
}

function listItem(kept) {
  const item = make("li"), name = make("button", "name", kept.title);
  name.type = "button"; name.dir = "auto"; name.title = kept.title;
  if (kept.id === chat.id) name.setAttribute("aria-current", "true");
  name.onclick = () => { openChat(readChat(kept.id) ?? newChat(chat.models, chat.settings)); leaveDrawer(); };
  item.append(
    name,
    iconButton("name", "Rename " + kept.title, () => rename(item, kept.id)),
    iconButton("bin", "Delete " + kept.title, () => remove([kept], "“" + kept.title + "” is deleted.")),
  );
  return item;
}

function leaveDrawer() { if ($("drawer").open) $("drawer").close(); $("text").focus(); }

function rename(item, id) {
  const before = id === chat.id ? chat : readChat(id), input = make("input");
  if (!before) return showList();
  input.value = before.title; input.dir = "auto"; input.maxLength = 80; input.setAttribute("aria-label", "Name of the conversation");
  item.replaceChildren(input); input.select();
  let over = false;
  const end = (save) => {
    if (over) return;
    over = true;
    if (save && input.value.trim()) { before.title = input.value.trim(); keepChat(before); }
    showList();
    [...$("list").querySelectorAll(".name")].find((one) => one.textContent === before.title)?.focus();
  };
  input.onblur = () => end(true);
  input.onkeydown = (event) => {
    if (event.key === "Enter" && !event.isComposing) end(true);
    if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); end(false); }
  };
}

function remove(gone, message) { // at once, and back again if that was a slip
  const open = gone.some((one) => one.id === chat.id) ? chat : null;
  if (open) stopAll();
  gone.forEach((one) => dropChat(one.id));
  if (open) openChat(newChat(chat.models, chat.settings));
  showList();
  if (gone.length === 1 && $("drawer").open) $("fresh").focus(); else leaveDrawer();
  tell(message, "Undo", () => {
    gone.forEach((one) => shelf.setItem(PREFIX + one.id, JSON.stringify(one)));
    if (open) openChat(readChat(open.id)); else showList();
    $("text").focus();
  });
}

$("fresh").onclick = $("fresh-top").onclick = () => { openChat(newChat(chat.models, chat.settings)); leaveDrawer(); };
$("clear").onclick = () => {
  const all = keptChats();
  remove(all, all.length === 1 ? "The conversation is deleted." : "All " + all.length + " conversations are deleted.");
};
window.addEventListener("storage", (event) => { if (!event.key || event.key.startsWith(PREFIX)) showList(); }); // another tab

// Settings: they belong to the conversation, and a new one begins with those of the last.
function showSettings() {
  const set = Object.keys(chat.settings).length > 0;
  $("set").classList.toggle("changed", set);
  $("set").setAttribute("aria-label", set ? "Settings, changed" : "Settings");
}
const FIELDS = { system: "system", temperature: "temperature", max_tokens: "max-tokens" };
$("set").onclick = () => {
  for (const [name, id] of Object.entries(FIELDS)) $(id).value = chat.settings[name] ?? "";
  $("settings").showModal();
};
$("settings-reset").onclick = () => { for (const id of Object.values(FIELDS)) $(id).value = ""; $("system").focus(); };
$("settings-cancel").onclick = () => $("settings").close();
$("settings-form").onsubmit = () => { // the form's own check has passed: the numbers are in their bounds
  const system = $("system").value.trim(), { temperature, "max-tokens": longest } = $("settings-form").elements;
  chat.settings = {
    ...(system && { system }),
    ...(temperature.value && { temperature: temperature.valueAsNumber }),
    ...(longest.value && { max_tokens: longest.valueAsNumber }),
  };
  if (chat.turns.length) keepChat(chat);
  showSettings();
};

// The key: in this tab only, never with the conversations.
function askForKey(trouble = "") {
  $("keys-trouble").hidden = !trouble; $("keys-trouble").textContent = trouble;
  $("keys-forget").hidden = !tab.getItem("key");
  if ($("drawer").open) $("drawer").close();
  if (!$("keys").open) $("keys").showModal();
  $("secret").select();
}
$("key").onclick = () => askForKey();
$("keys-cancel").onclick = () => $("keys").close();
$("keys-forget").onclick = () => { tab.removeItem("key"); $("secret").value = ""; $("keys").close(); loadModels(); };
$("keys-form").onsubmit = (event) => {
  event.preventDefault();
  tab.setItem("key", $("secret").value.trim()); $("secret").value = "";
  loadModels();
};

// The page of mlx-transformer serve. Text of people and models is only ever inserted as text, never as HTML.

const DELAY = 300; // milliseconds without typing before a text is translated
const SLOW = 1000; // milliseconds after which the page says that it waits
const NUM_ALTERNATIVES = 8;
const SPACE = /([ \t\n\v\f\r]+)/; // what separates words in alignments

const element = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const { source, mirror, target, alternatives } = element;
const selects = [element["source-language"], element["target-language"]];
const chosen = new Map(); // a sentence and its languages -> the alternative that was chosen for it

let languages = []; // as /languages lists them
let pieces = []; // of the translation, each with the elements of its words: words.source, words.target
let timer;
let request; // the AbortController of the request that runs, one at a time

// Requests

async function translate(fields) {
  request?.abort();
  const { signal } = (request = new AbortController());
  const headers = { "Content-Type": "application/json" };
  if (element.key.value) headers.Authorization = `Bearer ${element.key.value}`;
  const [from, to] = selects.map((select) => select.value || undefined);
  const body = JSON.stringify({ source: from, target: to, ...fields });
  const slow = setTimeout(() => show("Translating …"), SLOW);
  try {
    const response = await fetch("/page/translate", { method: "POST", headers, body, signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    show("");
    return answer.pieces;
  } catch (error) {
    if (signal.aborted) return null;
    show(error instanceof TypeError ? "The server does not answer." : error.message, true);
    return null;
  } finally {
    clearTimeout(slow);
  }
}

function stopRequest() {
  request?.abort();
  show("");
}

function show(message, isError = false) {
  element.status.textContent = message;
  element.status.classList.toggle("error", isError);
}

// The two panes

function changeText(delay = DELAY) {
  clearTimeout(timer);
  stopRequest();
  closeAlternatives();
  mirror.textContent = `${source.value}\n`;
  for (const piece of pieces) piece.words.source = [];
  target.classList.add("stale");
  timer = setTimeout(translateSource, delay);
}

async function translateSource() {
  const answer = source.value.trim() ? await translate({ text: source.value }) : [];
  if (!answer) return;
  pieces = answer.map((piece) => ({ ...piece, ...chosen.get(keyOf(piece)) }));
  render();
}

function keyOf(piece) {
  return JSON.stringify([piece.source, ...selects.map((select) => select.value)]);
}

function render() {
  mirror.replaceChildren();
  target.replaceChildren();
  pieces.forEach((piece, index) => {
    piece.words = { source: appendWords(mirror, piece.source, index), target: appendWords(target, piece.text, index) };
    for (const word of piece.alignment ? piece.words.target : []) {
      word.tabIndex = -1;
      word.setAttribute("role", "button");
      word.setAttribute("aria-haspopup", "listbox");
    }
  });
  mirror.append("\n");
  target.classList.remove("stale");
  const first = target.querySelector("[role=button]");
  if (first) first.tabIndex = 0; // the arrow keys lead from it to the others
  element.copy.disabled = !first;
}

function appendWords(parent, text, index) {
  const words = [];
  text.split(SPACE).forEach((part, number) => {
    if (number % 2 || !part) return parent.append(part);
    const word = document.createElement("span");
    word.textContent = part;
    Object.assign(word.dataset, { piece: index, word: words.length });
    words.push(word);
    parent.append(word);
  });
  return words;
}

function targetWords() {
  return [...target.querySelectorAll("[role=button]")];
}

function focusWord(word) {
  for (const other of targetWords()) other.tabIndex = other === word ? 0 : -1;
  word?.focus();
}

// Alignment

function highlight(word) {
  for (const marked of document.querySelectorAll(".aligned")) marked.classList.remove("aligned");
  if (!word) return;
  const { words, alignment = [] } = pieces[word.dataset.piece];
  const side = mirror.contains(word) ? 0 : 1;
  const pairs = alignment.filter((pair) => pair[side] === Number(word.dataset.word));
  if (!pairs.length) return;
  word.classList.add("aligned");
  for (const pair of pairs) (side ? words.source[pair[0]] : words.target[pair[1]])?.classList.add("aligned");
}

function wordAtCaret() {
  let position = source.selectionStart;
  for (const node of mirror.childNodes) {
    if (position <= node.textContent.length && node.dataset) return node;
    position -= node.textContent.length;
    if (position < 0) return null;
  }
  return null;
}

// Alternatives

async function openAlternatives(word) {
  if (target.classList.contains("stale")) return;
  closeAlternatives();
  focusWord(word);
  const piece = pieces[word.dataset.piece];
  const number = Number(word.dataset.word);
  const start = piece.words.target.slice(0, number).map((other) => other.textContent);
  const answer = await translate({ text: piece.source, prefix: start.join(" "), alternatives: NUM_ALTERNATIVES });
  const sentence = answer?.find((part) => part.alternatives);
  if (!sentence || document.activeElement !== word) return;
  const options = sentence.alternatives.filter((option) => option.text !== piece.text);
  if (!options.length) return show("No alternatives for this word.");
  alternatives.replaceChildren(...options.map((option) => makeOption(option, piece, number)));
  alternatives.hidden = false;
  const room = target.parentElement.clientWidth - alternatives.offsetWidth;
  alternatives.style.left = `${Math.max(0, Math.min(word.offsetLeft, room))}px`;
  alternatives.style.top = `${word.offsetTop + word.offsetHeight + 4}px`;
  word.setAttribute("aria-expanded", "true");
  alternatives.firstElementChild.focus();
}

function makeOption(option, piece, number) {
  const item = document.createElement("li");
  item.setAttribute("role", "option");
  item.setAttribute("aria-selected", "false");
  item.tabIndex = -1;
  item.dir = "auto";
  item.textContent = option.text.split(SPACE).slice(2 * number).join("") || "(end)";
  item.addEventListener("click", () => {
    chosen.set(keyOf(piece), option);
    Object.assign(piece, option);
    closeAlternatives();
    render();
    focusWord(piece.words.target[Math.min(number, piece.words.target.length - 1)]);
  });
  return item;
}

/** Return the word whose alternatives are listed. */
function openWord() {
  return target.querySelector("[aria-expanded]");
}

/** Close the list; return the word that it belonged to. */
function closeAlternatives() {
  alternatives.hidden = true;
  const word = openWord();
  word?.removeAttribute("aria-expanded");
  return word;
}

// Languages

function nameOf(code) {
  return languages.find((language) => language.code === code)?.name ?? code;
}

/** Fill a chooser, and keep what was chosen, now or last time; a single language is only named. */
function fill(select, codes) {
  const options = codes.map((code) => new Option(nameOf(code), code));
  options.sort((a, b) => a.text.localeCompare(b.text));
  const own = navigator.languages.map((code) => code.split("-")[0]);
  const usual = select === selects[1] ? own : own.includes("en") ? [] : ["en"];
  const wanted = [select.value, rememberedLanguage(select), ...usual, codes[0]];
  select.replaceChildren(...options);
  select.value = wanted.find((code) => codes.includes(code));
  select.hidden = options.length < 2;
}

/** Return the language that was chosen on the last visit, if the browser keeps it. */
function rememberedLanguage(select) {
  try {
    return localStorage.getItem(select.id);
  } catch {
    return null;
  }
}

function rememberLanguage(select) {
  try {
    localStorage.setItem(select.id, select.value);
  } catch {
    // Browsers may forbid it.
  }
}

function changeLanguages() {
  const known = languages.find((language) => language.code === selects[0].value);
  if (known) fill(selects[1], known.targets);
  selects.forEach((select, side) => {
    const title = element[side ? "target-title" : "source-title"];
    if (languages.length) title.textContent = select.hidden ? nameOf(select.value) : side ? "To" : "From";
    (side ? target : source).lang = select.value;
  });
  changeText(0);
}

async function start() {
  const [known, settings] = await Promise.all(
    ["/languages", "/frontend/settings"].map((path) => fetch(path).then((response) => response.json())),
  );
  languages = known;
  element["key-field"].hidden = !settings.keyRequired;
  const sources = languages.filter((language) => language.targets.length).map((language) => language.code);
  if (sources.length) fill(selects[0], sources);
  changeLanguages();
}

// Events

/** Whether a key belongs to the browser, such as Alt and an arrow, which lead to other pages. */
function hasModifier(event) {
  return event.altKey || event.ctrlKey || event.metaKey;
}

source.addEventListener("input", () => changeText());
source.addEventListener("pointermove", (event) => {
  const under = document.elementsFromPoint(event.clientX, event.clientY);
  highlight(under.find((node) => node.parentElement === mirror));
});
source.addEventListener("pointerleave", () => highlight());
source.addEventListener("keyup", () => highlight(wordAtCaret()));
source.addEventListener("blur", () => highlight());
target.addEventListener("pointerover", (event) => highlight(event.target.closest("[role=button]")));
target.addEventListener("pointerleave", () => highlight(openWord()));
target.addEventListener("focusin", (event) => highlight(event.target));
target.addEventListener("focusout", () => highlight(openWord()));
target.addEventListener("click", (event) => {
  const word = event.target.closest("[role=button]");
  if (word && getSelection().isCollapsed) openAlternatives(word);
});
target.addEventListener("keydown", (event) => {
  if (hasModifier(event)) return;
  const words = targetWords();
  const index = words.indexOf(event.target);
  const step = getComputedStyle(target).direction === "rtl" ? -1 : 1;
  const next = { ArrowRight: index + step, ArrowLeft: index - step, Home: 0, End: words.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") openAlternatives(event.target);
  else if (event.key === "Escape") stopRequest();
  else if (next === undefined) return;
  else if (words[next]) focusWord(words[next]);
  event.preventDefault();
});
alternatives.addEventListener("keydown", (event) => {
  if (hasModifier(event)) return;
  const options = [...alternatives.children];
  const index = options.indexOf(event.target);
  const next = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: options.length - 1 }[event.key];
  if (event.key === "Enter" || event.key === " ") event.target.click();
  else if (event.key === "Escape" || event.key === "Tab") focusWord(closeAlternatives());
  else if (next === undefined) return;
  else options.at(next % options.length).focus();
  if (event.key !== "Tab") event.preventDefault();
});
alternatives.addEventListener("focusout", (event) => {
  if (alternatives.contains(event.relatedTarget)) return;
  closeAlternatives();
  highlight();
});
for (const select of selects) {
  select.addEventListener("change", () => {
    rememberLanguage(select);
    changeLanguages();
  });
}
element.key.addEventListener("change", () => changeText(0));
element.copy.addEventListener("click", async () => {
  const text = pieces.map((piece) => piece.text).join("");
  try {
    await navigator.clipboard.writeText(text);
    show("Copied.");
  } catch {
    getSelection().selectAllChildren(target); // pages of plain HTTP from other machines may not write to the clipboard
    show(document.execCommand("copy") ? "Copied." : "Copy the selected text with your keyboard.");
  }
});

start().catch(() => show("The server does not answer.", true));

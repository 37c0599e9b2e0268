// The page of `rprm serve`. All that comes from a model or a file becomes text nodes, never HTML.
import { eventsOf } from "/page/events.js";

export const find = (id) => document.getElementById(id);
const results = find("results");
let running = null;

// What is shown belongs to the last that was asked for: what stood there goes, and an answer that another has
// overtaken is dropped.
let numBegun = 0;
export const isLast = (number) => number === numBegun;

export function begun() {
  running?.abort();
  results.replaceChildren();
  return ++numBegun;
}

export function say(text, failed = false) {
  find("status").textContent = text;
  find("status").classList.toggle("failed", failed);
}

// The solutions of a text: one JSON value a line, or one value in all.
function solutionsOf(text) {
  const read = (line, number) => {
    try {
      return JSON.parse(line);
    } catch (error) {
      throw new Error(`line ${number + 1} is not JSON: ${error.message}`);
    }
  };
  let whole;
  try {
    whole = JSON.parse(text);
  } catch {
    const lines = text.split("\n");
    whole = lines.flatMap((line, number) => (line.trim() ? [read(line, number)] : []));
  }
  const found = Array.isArray(whole) ? whole : [whole];
  if (!found.length) throw new Error("the file has no solution");
  return found;
}

// The problem of a row, which may be a chat.
function problemOf({ problem, messages }) {
  const asked = problem ?? (messages ?? []).find((one) => one.role === "user")?.content;
  return typeof asked === "string" ? asked : "";
}

export const stepName = (index) => (index === null || index === undefined ? "–" : index < 0 ? "none" : `step ${index + 1}`);

function shareOf(value) {
  return value === null ? "no reward" : `${(100 * value).toFixed(1)}%`;
}

export function makeSolution(started, row) {
  const made = find("solution-template").content.cloneNode(true).firstElementChild;
  made.querySelector("h2").textContent = started.id;
  made.querySelector(".problem").textContent = problemOf(row);
  made.querySelector(".notes").textContent = (started.notes ?? []).join("\n");
  made.querySelector(".verdict").textContent = "being judged";
  for (const text of started.steps) {
    const step = find("step-template").content.cloneNode(true).firstElementChild;
    step.querySelector(".text").textContent = text;
    step.querySelector(".number").textContent = "waiting";
    made.querySelector(".steps").append(step);
  }
  results.append(made);
  return made;
}

export function showStep(step, found) {
  const verdict = found.verdict === null ? "unscored" : found.verdict ? "right" : "wrong";
  step.classList.add(verdict);
  step.querySelector(".bar").style.setProperty("--share", `${100 * (found.reward ?? 0)}%`);
  const unscored = found.failure ?? (found.reward === null ? "not judged" : "after the first error");
  const words = { right: "correct", wrong: "wrong", unscored };
  step.querySelector(".number").textContent = `${shareOf(found.reward)}, ${words[verdict]}`;
  const analyses = found.analyses ?? [];
  if (!analyses.length) return;
  const details = step.querySelector("details");
  details.hidden = false;
  const shares = analyses.map((one) => (one.p_yes === null ? "–" : one.p_yes.toFixed(2)));
  details.querySelector("summary").textContent = `P(Yes) of ${analyses.length} analyses: ${shares.join(" ")}`;
  analyses.forEach((one, number) => {
    const title = document.createElement("h3");
    title.textContent = `Analysis ${number + 1}: ${shareOf(one.p_yes)} Yes, ${one.num_tokens} tokens`;
    const text = document.createElement("pre");
    text.textContent = one.text;
    details.querySelector(".analyses").append(title, text);
  });
}

export function showVerdict(made, first, label) {
  const line = made.querySelector(".verdict");
  const [text, kind] =
    first === null ? ["Not known whether there is an error", ""]
    : first < 0 ? ["No error found", "right-text"]
    : [`The first error is in step ${first + 1}`, "wrong-text"];
  line.textContent = text;
  if (kind) line.classList.add(kind);
  if (typeof label !== "number") return;
  line.textContent += `; the label says ${stepName(label)}`;
  line.className = `verdict ${label === first ? "right-text" : "wrong-text"}`;
}

async function judge(rows) {
  const number = begun();
  const own = (running = new AbortController());
  find("judge").disabled = true;
  find("stop").hidden = false;
  say(`judging ${rows.length === 1 ? "one solution" : `${rows.length} solutions`}`);
  const made = new Map();
  let numSteps = 0;
  try {
    const body = JSON.stringify({ solutions: rows, stream: true, analyses: true });
    const request = { method: "POST", headers: { "content-type": "application/json" }, body, signal: own.signal };
    for await (const event of eventsOf(await fetch("/v1/rewards", request))) {
      const solution = made.get(event.index);
      if (event.error) throw new Error(event.error.message);
      if (event.object === "solution.started") made.set(event.index, makeSolution(event, rows[event.index]));
      if (event.object === "step.reward") {
        showStep(solution.querySelectorAll(".step")[event.step_index], event);
        say(`${++numSteps} steps judged`);
      }
      if (event.object === "solution.rewards") showVerdict(solution, event.first_error, rows[event.index].label);
      if (event.object === "done") say(`${numSteps} steps judged, ${event.usage.analyses} analyses, ${event.usage.generated_tokens} tokens`);
    }
  } catch (error) {
    if (isLast(number)) say(own.signal.aborted ? "stopped" : error.message, !own.signal.aborted);
  } finally {
    if (running === own) {
      find("judge").disabled = false;
      find("stop").hidden = true;
    }
  }
}

async function judgeFile(file) {
  begun();
  try {
    if (!/\.(jsonl?|txt)$/i.test(file.name)) {
      throw new Error("the page takes .jsonl, .json and .txt, one solution a line; rprm judge takes CSV and Parquet too");
    }
    const text = await file.text();
    await judge(solutionsOf(text));
  } catch (error) {
    say(`${file.name}: ${error.message}`, true);
  }
}

find("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  judge([{ id: "solution", problem: find("problem").value, solution: find("solution").value }]);
});
find("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("ask").requestSubmit();
});
find("stop").addEventListener("click", () => running?.abort());
find("file").addEventListener("change", ({ target }) => target.files.length && judgeFile(target.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) judgeFile(event.dataTransfer.files[0]);
});
results.addEventListener("keydown", (event) => {
  const steps = [...results.querySelectorAll(".step")];
  const at = steps.indexOf(document.activeElement.closest(".step"));
  const to = { j: at + 1, k: at - 1 }[event.key];
  if (to !== undefined && steps[to]) steps[to].focus();
  if (event.key === "Enter" && document.activeElement === steps[at]) {
    const details = steps[at].querySelector("details");
    details.open = !details.open && !details.hidden;
  }
});

fetch("/v1/models").then((answer) => answer.json()).then(({ data }) => {
  find("model").textContent = data[0].id;
});

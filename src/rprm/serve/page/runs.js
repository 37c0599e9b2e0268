// Run folders on the page: a list to choose from, two runs side by side, a solution of one with its analyses.
import { begun, find, isLast, makeSolution, say, showStep, showVerdict, stepName } from "/page/page.js";

const rows = find("list").tBodies[0];
let numShown = 0;
let numLists = 0;

async function get(path, words = {}) {
  const answer = await fetch(`${path}?${new URLSearchParams(words)}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error?.message ?? `the server answered ${answer.status}`);
  return found;
}

function addRow(run, line) {
  const cells = [line.id, stepName(line.label), line.first_error === null ? "not known" : stepName(line.first_error)];
  cells.push(line.beside ? (line.beside.first_error === null ? "not known" : stepName(line.beside.first_error)) : "–");
  cells.push(line.agreement === null ? "–" : `${Math.round(100 * line.agreement)}%`);
  const row = rows.insertRow();
  cells.forEach((text, number) => {
    const cell = number ? row.insertCell() : row.appendChild(document.createElement("th"));
    if (number) {
      cell.textContent = text;
      return;
    }
    cell.scope = "row";
    const link = cell.appendChild(document.createElement("a"));
    link.textContent = text;
    link.href = `#${new URLSearchParams({ run, id: line.id })}`;
  });
}

async function list(more = false) {
  const own = ++numLists; // An answer that another question has overtaken is dropped.
  if (!more) {
    rows.replaceChildren();
    numShown = 0;
  }
  const words = { run: find("run").value, kind: find("kind").value, offset: numShown };
  if (find("beside").value) words.beside = find("beside").value;
  try {
    const { data, has_more } = await get("/v1/runs/solutions", words);
    if (own !== numLists) return;
    data.forEach((line) => addRow(words.run, line));
    numShown += data.length;
    find("more").hidden = !has_more;
    find("list").hidden = !numShown;
    const alone = find("kind").value === "differ" && !find("beside").value;
    say(alone ? "choose a run beside this one" : `${numShown}${has_more ? " or more" : ""} ${numShown === 1 ? "solution" : "solutions"}`);
  } catch (error) {
    if (own === numLists) say(error.message, true);
  }
}

async function showLinked() {
  const { run, id } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!run || !id) return;
  const own = begun();
  try {
    const found = await get("/v1/runs/solution", { run, id });
    if (!isLast(own)) return;
    if (find("run").value !== run) {
      find("run").value = run;
      await list();
      if (!isLast(own)) return;
    }
    const made = makeSolution({ id: `${id} of ${run}`, steps: found.texts, notes: found.notes }, found);
    found.steps.forEach((step) => showStep(made.querySelectorAll(".step")[step.step_index], step));
    made.querySelectorAll(".number").forEach((one) => {
      if (one.textContent === "waiting") one.textContent = "not judged";
    });
    showVerdict(made, found.first_error, found.label);
    find("results").focus();
    say(`${id} of ${run}`);
  } catch (error) {
    if (isLast(own)) say(error.message, true);
  }
}

const { data } = await get("/v1/runs");
find("browse").hidden = !data.length;
const none = find("beside").appendChild(document.createElement("option"));
none.value = "";
none.textContent = "nothing";
for (const name of ["run", "beside"]) {
  for (const run of data) {
    const option = find(name).appendChild(document.createElement("option"));
    option.value = run.name;
    option.textContent = `${run.name} (${run.model}, ${run.num_rows})`;
  }
}
for (const name of ["run", "beside", "kind"]) find(name).addEventListener("change", () => list());
find("more").addEventListener("click", () => list(true));
addEventListener("hashchange", showLinked);
if (data.length) await list();
await showLinked();


// What is wrong is said at the field and in a region that screen readers read out.

/** The element around the field that a parameter of the API belongs to. */
function fieldOf(param) {
  return param && document.querySelector(`[data-param~="${CSS.escape(param)}"]`);
}

function clearProblems() {
  $("problem").textContent = "";
  for (const note of document.querySelectorAll(".field-problem")) note.remove();
  for (const input of document.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

function showProblem(error) {
  const field = fieldOf(error.param);
  const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  const message = sentence(inWordsOf(field, error)) + wait;
  $("problem").textContent = message;
  // Eyes find it at the field.
  $("problem").classList.toggle("unseen", Boolean(field));
  say("");
  if (!field) return;
  const note = make("p", { className: "field-problem", id: newId() }, message);
  field.append(note);
  // A closed part of the form would hide it.
  for (let part = field.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  const inputs = [...field.querySelectorAll("input, select, textarea")];
  for (const input of inputs) {
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", note.id);
  }
  inputs[0]?.focus();
}

/** The API names its own fields; people see labels. */
function inWordsOf(field, { param, message }) {
  const name = field?.dataset.name;
  return name && /^[ :]/.test(message.slice(param.length)) && message.startsWith(param) ? name + message.slice(param.length) : message;
}

/** The API's messages begin in small letters and end without a full stop. */
function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}


// Elements of the page, and small things that the rest is made of.

const $ = (id) => document.getElementById(id);

/** A new element. Names that are no properties, such as `aria-label`, become attributes. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

let madeIds = 0;

/** An id that no other element has, for a label that names its input. */
const newId = () => `made-${++madeIds}`;

/** A labelled number input. An empty one shows what then counts. */
function numberInput(label, properties) {
  const input = make("input", { type: "number", id: newId(), inputMode: "decimal", ...properties });
  return { input, element: make("div", { className: "field" }, make("label", { htmlFor: input.id }, label), input) };
}

/** A labelled choice. */
function choice(label, names) {
  const select = make("select", { id: newId() }, ...names.map((name) => new Option(name)));
  return { select, element: make("div", { className: "field" }, make("label", { htmlFor: select.id }, label), select) };
}

/** Says something to those who look and to those who listen. */
function say(text) {
  $("status").textContent = text;
}

const canvasBlob = (canvas) => new Promise((resolve) => canvas.toBlob(resolve, "image/png"));

/** A picture from a file, once its pixels are there. */
async function decoded(blob) {
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
    return picture;
  } finally {
    URL.revokeObjectURL(picture.src);
  }
}


// The pictures of this visit, in memory only.

const MOST_PICTURES = 60;
const MOST_BYTES = 256 << 20;

/** Newest first. */
let pictures = [];

/** The bytes that a picture keeps, with those of the pictures that it began with. */
function bytesOf({ blob, settings }) {
  const others = [settings.image, settings.mask, ...[...(settings.control ?? []), ...(settings.reference ?? [])].map(({ image }) => image)];
  return [blob, ...others].reduce((sum, file) => sum + (file?.size ?? 0), 0);
}

/** Keeps a finished picture, and shows it. `settings` make it again. */
function addPicture(settings, event) {
  const blob = blobOf(event.b64_json, `image/${event.output_format}`);
  const url = URL.createObjectURL(blob);
  const { b64_json, ...how } = event;
  const image = make("img", { src: url, alt: "", loading: "lazy" });
  const button = make("button", { type: "button", title: settings.prompt, "aria-label": `${settings.prompt || "Picture"}, seed ${event.seed}` }, image);
  const picture = { blob, url, settings, event: how, button, item: make("li", {}, button) };
  button.addEventListener("click", () => {
    showPicture(picture);
    $("stage").scrollIntoView({ block: "nearest" });
  });
  pictures.unshift(picture);
  $("gallery").prepend(picture.item);
  $("visit").hidden = false;
  showPicture(picture);
  dropOldest();
}

/** The oldest go once there are too many, or too large ones. */
function dropOldest() {
  let bytes = pictures.reduce((sum, picture) => sum + bytesOf(picture), 0);
  while (pictures.length > 1 && (pictures.length > MOST_PICTURES || bytes > MOST_BYTES)) {
    const oldest = pictures.pop();
    bytes -= bytesOf(oldest);
    URL.revokeObjectURL(oldest.url);
    oldest.item.remove();
  }
}

function markShown() {
  for (const { button } of pictures) button.removeAttribute("aria-current");
  shown.button.setAttribute("aria-current", "true");
}

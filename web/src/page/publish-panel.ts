/** The adapter put onto a hub, into a repository of the visitor's own. */

import type { App } from "../app";
import type { PublishRequest } from "../protocol";
import { DEFAULT_HUB, parseHubBase, parseModelName } from "../recipe";
import { ariaLabel, h, show } from "./dom";
import { button, checkbox, field, noticePlace, progressBar } from "./parts";

/** Where a token lies that somebody asked to keep. */
const TOKEN = "loraine-publish-token";

type Adapter = Pick<PublishRequest, "run" | "model" | "base" | "card">;

export function publishPanel(app: App, adapter: () => Adapter): HTMLElement {
  const hub = field("Hub to publish on", h("input", { type: "url", value: DEFAULT_HUB, autocomplete: "off", spellcheck: false }));
  const name = field(
    "Repository",
    h("input", { type: "text", placeholder: "you/name", autocomplete: "off", spellcheck: false, maxLength: 200 }),
    "It is made where it is not there.",
  );
  const token = field(
    "Token with write access",
    h("input", { type: "password", autocomplete: "off", spellcheck: false, maxLength: 200 }),
    "It is sent to this hub alone.",
  );
  const keep = checkbox("Keep the token in this browser", () => remember());
  const hidden = checkbox("Private repository", () => {});
  hidden.input.checked = true;
  const notices = noticePlace();
  const progress = progressBar("Progress of the upload");
  const publish = button("Publish", () => void send(), "primary");
  const stop = button("Stop", () => void app.engine.call("cancelPublish", null));
  ariaLabel(stop, "Stop publishing");
  show(stop, false);
  // Kept only where somebody has asked for it.
  token.input.value = localStorage.getItem(TOKEN) ?? "";
  keep.input.checked = token.input.value !== "";
  const remember = () => {
    const value = token.input.value.trim();
    if (keep.input.checked && value !== "") localStorage.setItem(TOKEN, value);
    else localStorage.removeItem(TOKEN);
  };
  token.input.oninput = remember;

  const send = async () => {
    const base = parseHubBase(hub.input.value);
    const model = parseModelName(name.input.value);
    const plain = model !== undefined && model.file === undefined && !name.input.value.includes("@");
    hub.problem(base === undefined ? "Enter an https address. Only localhost may use http." : "");
    name.problem(plain ? "" : "Enter a name such as you/name.");
    token.problem(token.input.value.trim() === "" ? "Enter a token of the hub that may write." : "");
    if (base === undefined || model === undefined || !plain || token.input.value.trim() === "") return;
    notices.clear();
    publish.disabled = true;
    show(stop, true);
    const request = { ...adapter(), hub: base, id: model.id, hidden: hidden.input.checked, token: token.input.value.trim() };
    await app.trying(
      async () => {
        const { address } = await app.engine.call(
          "publish",
          request,
          (notice) => notice.type === "progress" && progress.set(notice.progress),
        );
        const link = h("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, address);
        notices.say("Published: ", link);
      },
      (failure) => notices.fail(failure),
    );
    publish.disabled = false;
    show(stop, false);
    show(progress.element, false);
  };
  return h(
    "details",
    { class: "publish" },
    h("summary", {}, "Publish"),
    h(
      "p",
      {},
      "The page sends the files of the zip to a repository of yours on a hub, such as Hugging Face. Nothing is sent before you press the button.",
    ),
    h("div", { class: "fields" }, name.element, hub.element, token.element),
    hidden.element,
    keep.element,
    h("div", { class: "buttons" }, publish, stop),
    progress.element,
    notices.element,
  );
}

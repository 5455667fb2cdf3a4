/** Models from a hub: a name or a pasted address, what it would cost, and those that have been downloaded. */

import type { App } from "../app";
import type { CachedModel, HubAddress } from "../protocol";
import { DEFAULT_HUB, parseHubBase, parseModelAddress } from "../recipe";
import { h, setText, show } from "./dom";
import * as format from "./format";
import { KNOWN_MODELS } from "./known-models";
import { button, field } from "./parts";

const TOKEN = "loraine-hub-token";

export interface HubPanel {
  element: HTMLElement;
  fill(base: string, name: string): void;
  /** The address that the fields hold, if they hold one. */
  address(): HubAddress | undefined;
  focus(): void;
}

const named = ({ id, revision }: HubAddress): string => (revision === "main" ? id : `${id}@${revision}`);

export function hubPanel(app: App): HubPanel {
  const base = field("Hub", h("input", { type: "url", value: DEFAULT_HUB, autocomplete: "off", spellcheck: false }));
  const name = field(
    "Model",
    h("input", { type: "text", placeholder: "owner/name", autocomplete: "off", spellcheck: false }),
    "owner/name, owner/name@revision, or the address of its page",
  );
  const address = (): HubAddress | undefined => {
    const model = parseModelAddress(name.input.value);
    const hub = parseHubBase(model?.base ?? base.input.value);
    return model === undefined || hub === undefined ? undefined : { base: hub, id: model.id, revision: model.revision };
  };
  const fill = (hub: string, model: string) => {
    base.input.value = hub;
    name.input.value = model;
    base.problem("");
    name.problem("");
  };
  const lookUp = () => {
    const hub = parseModelAddress(name.input.value)?.base ?? base.input.value;
    base.problem(parseHubBase(hub) === undefined ? "Enter an https address. Only localhost may use http." : "");
    name.problem(parseModelAddress(name.input.value) === undefined ? "Enter a name such as owner/name." : "");
    const asked = address();
    if (asked === undefined) return;
    // A pasted address is taken apart, so that the fields say what is asked.
    fill(asked.base, named(asked));
    const have = app.cached.some(({ address, whole }) => whole && address.base === asked.base && named(address) === named(asked));
    void (have ? app.openHub(asked) : app.lookUp(asked));
  };
  name.input.onkeydown = base.input.onkeydown = (event) => {
    if (event.key === "Enter") lookUp();
  };
  name.input.oninput = base.input.oninput = () => app.chooseModel("hub", address());
  const find = button("Look up", lookUp);
  const known = h("div", { class: "known" }, h("h3", {}, "Models to start with"), knownList(app, fill));
  const kept = h("div", { class: "kept" });
  app.on(["cached"], () => {
    const rows = app.cached.map((model) => cachedRow(app, model));
    kept.replaceChildren(...(rows.length === 0 ? [] : [h("h3", {}, "Downloaded models"), h("ul", {}, ...rows)]));
  });
  let shown: App["model"];
  app.on(["model"], () => {
    const source = app.model?.source;
    if (app.model !== shown && source?.kind === "hub") fill(source.address.base, named(source.address));
    shown = app.model;
  });
  const element = h(
    "div",
    {},
    h("p", {}, "The page downloads the files into this browser’s storage and keeps them there. It contacts no other address."),
    h("div", { class: "fields hub" }, name.element, base.element, h("div", { class: "field-button" }, find)),
    offered(app),
    tokenField(app),
    kept,
    known,
  );
  return { element, fill, address, focus: () => (name.input.value === "" ? name.input : find).focus() };
}

/** What was found, and the button that downloads it. */
function offered(app: App): HTMLElement {
  const text = h("p", {});
  const download = button("Download", () => app.offer !== undefined && void app.openHub(app.offer.address), "primary");
  const element = h("div", { class: "offer", role: "status", hidden: true }, text, download);
  app.on(["model"], () => {
    const { offer } = app;
    show(element, offer !== undefined && app.modelProgress === undefined);
    if (offer === undefined) return;
    const { address, bytes, parameters, memory } = offer;
    const size = bytes === undefined ? "a download of unknown size" : `${format.bytes(bytes)} to download`;
    const gpu = `${format.bytes(memory)} on the GPU in training with these settings`;
    setText(text, `${named(address)}: ${format.parameters(parameters)} parameters, ${size}, ${gpu}.`);
    setText(download, bytes === undefined ? "Download" : `Download ${format.bytes(bytes)}`);
  });
  return element;
}

function tokenField(app: App): HTMLElement {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: false, maxLength: 200 });
  const made = field(
    "Access token",
    input,
    "For gated and private models. It is sent to the hub alone, and forgotten when you close this tab.",
  );
  app.token = input.value = sessionStorage.getItem(TOKEN) ?? "";
  input.oninput = () => {
    app.token = input.value.trim();
    if (app.token === "") sessionStorage.removeItem(TOKEN);
    else sessionStorage.setItem(TOKEN, app.token);
  };
  return h("details", {}, h("summary", {}, "Gated models"), h("div", { class: "fields" }, made.element));
}

function knownList(app: App, fill: HubPanel["fill"]): HTMLElement {
  const row = ({ id, download, memory, gated }: (typeof KNOWN_MODELS)[number]) => {
    const choose = button(
      "Choose",
      () => {
        fill(DEFAULT_HUB, id);
        void app.lookUp({ base: DEFAULT_HUB, id, revision: "main" });
      },
      "quiet",
    );
    choose.setAttribute("aria-label", `Choose ${id}`);
    const size = `${format.bytes(download)} to download, about ${format.bytes(memory)} on the GPU${gated ? "; needs a token" : ""}`;
    return h("li", {}, h("span", {}, id), h("span", { class: "hint" }, size), choose);
  };
  return h("ul", {}, ...KNOWN_MODELS.map(row));
}

function cachedRow(app: App, { address, bytes, whole }: CachedModel): HTMLElement {
  const name = named(address);
  const size = whole ? format.bytes(bytes) : `${format.bytes(bytes)}, incomplete`;
  const open = button(whole ? "Open" : "Resume", () => void app.openHub(address), "quiet");
  const remove = button("Remove", () => void app.forgetModel(address), "quiet");
  open.setAttribute("aria-label", `${open.textContent}: ${name}`);
  remove.setAttribute("aria-label", `Remove ${name}`);
  return h("li", {}, h("span", {}, name), h("span", { class: "hint" }, size), open, remove);
}

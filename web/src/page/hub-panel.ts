/** Models from a hub: a name or a pasted address, what it would cost, and those that have been downloaded. */

import type { App } from "../app";
import type { CachedModel, HubAddress, HubChoice } from "../protocol";
import { DEFAULT_HUB, modelName, parseHubBase, parseModelAddress, parseModelName } from "../recipe";
import { ariaLabel, h, setText, show } from "./dom";
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

export function hubPanel(app: App): HubPanel {
  const base = field("Hub", h("input", { type: "url", value: DEFAULT_HUB, autocomplete: "off", spellcheck: false }));
  const name = field(
    "Model",
    h("input", { type: "text", placeholder: "owner/name", autocomplete: "off", spellcheck: false }),
    "owner/name or owner/name@revision, with :file.gguf for a GGUF file, or the address of its page",
  );
  const address = (): HubAddress | undefined => {
    const model = parseModelAddress(name.input.value);
    const hub = parseHubBase(model?.base ?? base.input.value);
    return model === undefined || hub === undefined ? undefined : { ...model, base: hub };
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
    fill(asked.base, modelName(asked));
    take(asked);
  };
  const take = (asked: HubAddress) => {
    const have = app.cached.some(({ address, whole }) => whole && address.base === asked.base && modelName(address) === modelName(asked));
    void (have ? app.openHub(asked) : app.lookUp(asked));
  };
  const choose = (asked: HubAddress) => {
    fill(asked.base, modelName(asked));
    take(asked);
  };
  name.input.onkeydown = base.input.onkeydown = (event) => {
    if (event.key === "Enter") lookUp();
  };
  name.input.oninput = base.input.oninput = () => app.chooseModel("hub", address());
  const find = button("Look up", lookUp);
  const known = h("div", { class: "known starters" }, h("h3", {}, "Models to start with"), knownList(choose));
  const kept = h("div", { class: "kept" });
  app.on(["cached"], () => {
    const rows = app.cached.map((model) => cachedRow(app, model));
    const mayGo = app.persistent === false && h("p", { class: "hint" }, "The browser may remove them when the disk is nearly full.");
    kept.replaceChildren(...(rows.length === 0 ? [] : [h("h3", {}, "Downloaded models"), h("ul", {}, ...rows), mayGo || ""]));
  });
  let shown: App["model"];
  app.on(["model"], () => {
    const source = app.model?.source;
    if (app.model !== shown && source?.kind === "hub") fill(source.address.base, modelName(source.address));
    shown = app.model;
  });
  const element = h(
    "div",
    {},
    h("p", {}, "The page downloads the files into this browser’s storage and keeps them there. It contacts no other address."),
    h("div", { class: "fields hub" }, name.element, base.element, h("div", { class: "field-button" }, find)),
    offered(app),
    fileChoice(app, choose),
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
    const { address, bytes, parameters, memory, room } = offer;
    const size = bytes === undefined ? "a download of unknown size" : `${format.bytes(bytes)} to download`;
    const gpu = `${format.bytes(memory)} on the GPU in training with these settings`;
    const full = room !== undefined && room.needed > room.granted;
    const lack = full ? ` The browser grants this page ${format.bytes(room.granted)}: free disk space, or remove downloaded models.` : "";
    setText(text, `${modelName(address)}: ${format.parameters(parameters)} parameters, ${size}, ${gpu}.${lack}`);
    setText(download, bytes === undefined ? "Download" : `Download ${format.bytes(bytes)}`);
    download.disabled = full;
  });
  return element;
}

/** The GGUF files of a repository, of which one is to be chosen. */
function fileChoice(app: App, choose: (asked: HubAddress) => void): HTMLElement {
  const title = h("h3", {});
  const list = h("ul", {});
  const element = h("div", { class: "known file-choice", role: "status", hidden: true }, title, list);
  app.on(["model"], () => {
    const { hubChoice } = app;
    show(element, hubChoice !== undefined && app.modelProgress === undefined);
    if (hubChoice === undefined) return;
    const { address, files } = hubChoice;
    setText(title, `GGUF files of ${address.id}`);
    const row = ({ path, bytes }: HubChoice["files"][number]) => {
      const take = button("Choose", () => choose({ ...address, file: path }), "quiet");
      ariaLabel(take, `Choose ${path}`);
      return h("li", {}, h("span", {}, path), h("span", { class: "hint" }, format.bytes(bytes)), take);
    };
    list.replaceChildren(...files.map(row));
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

function knownList(choose: (asked: HubAddress) => void): HTMLElement {
  const row = ({ name, address, license, download, memory }: (typeof KNOWN_MODELS)[number]) => {
    const model = parseModelName(address);
    const take = button("Choose", () => model !== undefined && choose({ base: DEFAULT_HUB, ...model }), "quiet");
    ariaLabel(take, `Choose ${name}`);
    const needs = `${format.bytes(download)} to download, about ${format.bytes(memory)} on the GPU; ${license}`;
    return h("li", {}, h("span", {}, name), h("span", { class: "hint" }, needs), take);
  };
  return h("ul", {}, ...KNOWN_MODELS.map(row));
}

function cachedRow(app: App, { address, bytes, whole }: CachedModel): HTMLElement {
  const name = modelName(address);
  const size = whole ? format.bytes(bytes) : `${format.bytes(bytes)}, incomplete`;
  const open = button(whole ? "Open" : "Resume", () => void app.openHub(address), "quiet");
  const remove = button("Remove", () => void app.forgetModel(address), "quiet");
  ariaLabel(open, `${open.textContent}: ${name}`);
  ariaLabel(remove, `Remove ${name}`);
  return h("li", {}, h("span", {}, name), h("span", { class: "hint" }, size), open, remove);
}

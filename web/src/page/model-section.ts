import type { App } from "../app";
import type { CachedModel } from "../protocol";
import { parseHubBase, parseModelName } from "../recipe";
import { h, show } from "./dom";
import { chosenFolder, droppedFolder, type Folder } from "./folder";
import * as format from "./format";
import { button, choice, dropPlace, facts, field, noticePlace, progressBar, section } from "./parts";

const HUB = "https://huggingface.co";

export interface ModelSection {
  element: HTMLElement;
  /** Shows a hub address that a link brought; nothing is fetched before the button is pressed. */
  offerHub(base: string, name: string): void;
  offerFolder(): void;
}

export function modelSection(app: App): ModelSection {
  const builtIn = h(
    "div",
    {},
    h(
      "p",
      {},
      "A tiny Llama of 0.8 million parameters, trained by this project. It tells short stories. It is the quickest way to try everything.",
    ),
  );
  const { element: folder, input: folderInput } = folderPanel(app);
  const hub = hubPanel(app);
  const ways = choice(
    "Model source",
    [
      ["demo", "Built-in", builtIn],
      ["folder", "Folder", folder],
      ["hub", "Hub address", hub.element],
    ],
    (way) => {
      if (way === "demo") void app.openDemo();
    },
  );
  const progress = progressBar("Progress of the model");
  const stop = button("Stop", () => app.cancelDownload(), "quiet");
  const loading = h("div", { class: "loading", hidden: true }, progress.element, stop);
  const notices = noticePlace();
  const summary = h("div", { class: "summary" });
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Choose a model"), ways.element);
  const { element } = section(
    1,
    "model",
    "Model",
    "The model to fine-tune. Its weights do not change: training adds a small adapter.",
    inputs,
    loading,
    notices.element,
    summary,
  );

  // Opens the panel only once, since the user may switch to another one meanwhile.
  let shown: App["model"];
  app.on(["model"], () => {
    show(loading, app.modelProgress !== undefined);
    show(stop, ways.chosen() === "hub");
    if (app.modelProgress !== undefined) progress.set(app.modelProgress);
    if (app.modelFailure === undefined) notices.clear();
    else notices.fail(app.modelFailure);
    if (app.model !== shown && app.model !== undefined) ways.choose(app.model.source.kind);
    shown = app.model;
    summary.replaceChildren(...(app.model === undefined ? [] : [described(app)]));
  });
  app.on(["run"], () => {
    inputs.disabled = app.run.active;
  });
  ways.choose("demo");
  return {
    element,
    offerHub: (base, name) => {
      ways.choose("hub");
      hub.fill(base, name);
    },
    offerFolder: () => {
      ways.choose("folder");
      folderInput.focus();
    },
  };
}

function described(app: App): HTMLElement {
  const { name, summary } = app.model as NonNullable<App["model"]>;
  return facts([
    ["Name", name],
    ["Family", summary.family],
    ["Parameters", format.parameters(summary.parameters)],
    ["Layers", `${summary.layers} of width ${format.count(summary.hidden_size)}`],
    ["Context", `${format.count(summary.context)} tokens`],
    ["On the GPU", `${format.bytes(summary.nf4_bytes)} in 4 bits`],
  ]);
}

function folderPanel(app: App): { element: HTMLElement; input: HTMLInputElement } {
  const input = h("input", { type: "file" });
  input.webkitdirectory = true;
  const take = (folder: Folder | undefined) => {
    if (folder !== undefined) void app.openFolder(folder.name, folder.files);
  };
  input.onchange = () => {
    if (input.files !== null) take(chosenFolder(input.files));
    input.value = "";
  };
  const text = "Drop a model folder here, with config.json, tokenizer.json and the .safetensors files. Nothing is uploaded.";
  const element = dropPlace(text, "Choose a folder", input, (transfer) => void droppedFolder(transfer).then(take));
  return { element, input };
}

function hubPanel(app: App): { element: HTMLElement; fill(base: string, name: string): void } {
  const base = field("Hub", h("input", { type: "url", value: HUB, autocomplete: "off", spellcheck: false }));
  const name = field(
    "Model",
    h("input", { type: "text", placeholder: "owner/name", autocomplete: "off", spellcheck: false }),
    "owner/name, or owner/name@revision",
  );
  const fetchModel = () => {
    const address = parseHubBase(base.input.value);
    const parsed = parseModelName(name.input.value);
    base.problem(address === undefined ? "Enter an https address. Only localhost may use http." : "");
    name.problem(parsed === undefined ? "Enter a name such as owner/name." : "");
    if (address !== undefined && parsed !== undefined) void app.openHub({ base: address, ...parsed });
  };
  name.input.onkeydown = base.input.onkeydown = (event) => {
    if (event.key === "Enter") fetchModel();
  };
  const kept = h("div", { class: "kept" });
  app.on(["cached"], () => {
    const rows = app.cached.map((model) => cachedRow(app, model));
    kept.replaceChildren(...(rows.length === 0 ? [] : [h("h3", {}, "Downloaded models"), h("ul", {}, ...rows)]));
  });
  const element = h(
    "div",
    {},
    h("p", {}, "The page downloads the files into this browser’s storage and keeps them there. It contacts no other address."),
    h("div", { class: "fields hub" }, base.element, name.element, h("div", { class: "field-button" }, button("Fetch", fetchModel))),
    kept,
  );
  const fill = (hub: string, model: string) => {
    base.input.value = hub;
    name.input.value = model;
    name.input.focus();
  };
  return { element, fill };
}

function cachedRow(app: App, { address, bytes, whole }: CachedModel): HTMLElement {
  const name = address.revision === "main" ? address.id : `${address.id}@${address.revision}`;
  const size = whole ? format.bytes(bytes) : `${format.bytes(bytes)}, incomplete`;
  const open = button(whole ? "Open" : "Resume", () => void app.openHub(address), "quiet");
  const remove = button("Remove", () => void app.forgetModel(address), "quiet");
  open.setAttribute("aria-label", `${open.textContent}: ${name}`);
  remove.setAttribute("aria-label", `Remove ${name}`);
  return h("li", {}, h("span", {}, name), h("span", { class: "hint" }, size), open, remove);
}

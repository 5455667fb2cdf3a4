import type { App } from "../app";
import { h, show } from "./dom";
import { chosenFolder, droppedFolder, type Folder, looseFiles } from "./folder";
import * as format from "./format";
import { hubPanel } from "./hub-panel";
import { button, choice, dropPlace, facts, noticePlace, progressBar, section } from "./parts";

export interface ModelSection {
  element: HTMLElement;
  /** Shows a hub address that a link brought; nothing is fetched before the button is pressed. */
  offerHub(base: string, name: string): void;
  offerFolder(): void;
  /** Gives the focus to what opens a model. */
  focus(): void;
}

export function modelSection(app: App): ModelSection {
  const builtIn = h(
    "div",
    {},
    h("p", {}, "A tiny Llama of 0.8 million parameters that tells short stories. It is the quickest way to try everything."),
  );
  const { element: folder, button: chooseFolder } = folderPanel(app);
  const hub = hubPanel(app);
  const ways = choice(
    "Model source",
    [
      ["demo", "Built-in", builtIn],
      ["folder", "Files", folder],
      ["hub", "Hub", hub.element],
    ],
    (way) => {
      if (way === "hub") app.chooseModel("hub", hub.address());
      else app.chooseModel(way as "demo" | "folder");
      if (way === "demo" && app.model === undefined) void app.openDemo();
    },
  );
  const progress = progressBar("Progress of the model");
  const stop = button("Stop", () => app.cancelDownload(), "quiet");
  const loading = h("div", { class: "loading", hidden: true }, progress.element, stop);
  const notices = noticePlace();
  const summary = h("div", { class: "summary" });
  const inputs = h("fieldset", { class: "bare" }, h("legend", { class: "visually-hidden" }, "Choose a model"), ways.element);
  const made = section(
    1,
    "model",
    "Model",
    "The model to fine-tune. Its weights do not change: training adds a small adapter.",
    inputs,
    loading,
    notices.element,
    summary,
  );

  app.on(["model"], () => {
    show(loading, app.modelProgress !== undefined);
    show(stop, app.chosen.model === "hub");
    if (app.modelProgress !== undefined) progress.set(app.modelProgress);
    if (app.modelFailure === undefined) notices.clear();
    else notices.fail(app.modelFailure);
    ways.choose(app.chosen.model);
    summary.replaceChildren(...(app.model === undefined ? [] : [described(app)]));
  });
  app.on(["run"], () => {
    inputs.disabled = app.run.active;
    const { model } = app;
    made.fold(
      app.run.active && model !== undefined ? `${model.name}, ${format.parameters(model.summary.parameters)} parameters` : undefined,
    );
  });
  ways.choose("demo");
  return {
    element: made.element,
    offerHub: (base, name) => {
      hub.fill(base, name);
      app.chooseModel("hub", hub.address());
    },
    offerFolder: () => app.chooseModel("folder"),
    focus: () => {
      if (app.chosen.model === "hub") hub.focus();
      else if (app.chosen.model === "folder") chooseFolder.focus();
      else ways.focus();
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

function folderPanel(app: App): ReturnType<typeof dropPlace> {
  const folder = h("input", { type: "file" });
  folder.webkitdirectory = true;
  const file = h("input", { type: "file", accept: ".gguf", multiple: true });
  const take = (chosen: Folder | undefined) => {
    if (chosen !== undefined) void app.openFolder(chosen.name, chosen.files);
  };
  const listen = (input: HTMLInputElement, chosen: (list: FileList) => Folder | undefined) => {
    input.onchange = () => {
      if (input.files !== null) take(chosen(input.files));
      input.value = "";
    };
  };
  listen(folder, chosenFolder);
  listen(file, looseFiles);
  const text =
    "Drop a model here: a GGUF file, or a folder with config.json, tokenizer.json and the .safetensors files. Nothing is uploaded.";
  const ways: [string, HTMLInputElement][] = [
    ["Choose a folder", folder],
    ["Choose a GGUF file", file],
  ];
  return dropPlace(text, ways, (transfer) => void droppedFolder(transfer).then(take));
}

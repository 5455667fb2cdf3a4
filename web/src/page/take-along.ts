/** The adapter to take along: as files, on a hub, and as a link to the settings it was made with. */

import type { App } from "../app";
import type { AdapterArchive } from "../protocol";
import { adapterFolder, toFragment } from "../recipe";
import { h, setText, show } from "./dom";
import { modelCard } from "./model-card";
import { button, field, noticePlace, progressBar } from "./parts";
import { publishPanel } from "./publish-panel";
import { saveFile } from "./save-file";

export function takeAlong(app: App): HTMLElement {
  const notices = noticePlace();
  const download = button("Download the adapter", () => void saveZip(), "primary");
  const gguf = button("Download for llama.cpp", () => void saveGguf());
  const merged = button("Download the merged model", () => void saveMerged());
  const progress = progressBar("Progress of the merged model");
  const base = field(
    "Base model",
    h("input", { type: "text", autocomplete: "off", spellcheck: false, maxLength: 200 }),
    "The adapter’s files name it: owner/name on a hub, or a folder that stands beside the adapter’s.",
  );
  const save = (ending: "zip" | "gguf", made: () => Promise<AdapterArchive>) => {
    notices.clear();
    return app.trying(
      async () => {
        const { name, bytes } = await made();
        saveFile(`${name}.${ending}`, [bytes], ending === "zip" ? "application/zip" : "application/octet-stream");
      },
      (failure) => notices.fail(failure),
    );
  };
  const chosen = () => ({ run: app.run.id as string, model: trained, base: base.input.value.trim() });
  const card = modelCard(app, chosen);
  const saveZip = async () => {
    base.problem(base.input.value.trim() === "" ? "Enter a name." : "");
    if (base.input.value.trim() === "") return;
    await save("zip", () => app.engine.call("adapterZip", { ...chosen(), card: card.text() }));
  };
  const saveGguf = () => {
    const request = { run: app.run.id as string, model: trained, dir: app.settings.model };
    return save("gguf", () => app.engine.call("adapterGguf", request));
  };
  const saveMerged = async () => {
    notices.clear();
    merged.disabled = true;
    const request = { run: app.run.id as string, model: trained, dir: app.settings.model };
    await app.trying(
      async () => {
        const told = await app.engine.call("mergedGguf", request, (notice) => notice.type === "progress" && progress.set(notice.progress));
        saveFile(told.name, [told.file], "application/octet-stream");
      },
      (failure) => notices.fail(failure),
    );
    merged.disabled = false;
    show(progress.element, false);
  };
  const address = field(
    "Link to these settings",
    h("input", { type: "text", readOnly: true }),
    "It contains the model address and the settings, and no data, prompts or file names.",
  );
  address.input.onfocus = () => address.input.select();
  const copied = h("span", { class: "hint", role: "status" });
  const copy = button("Copy link", () => {
    void navigator.clipboard.writeText(address.input.value).then(
      () => setText(copied, "Copied."),
      () => address.input.select(),
    );
  });
  const update = () => {
    const fragment = toFragment(app.settings, app.model?.source, app.data?.source.kind === "example");
    address.input.value = new URL(fragment, location.href.replace(/#.*$/, "")).href;
    setText(copied, "");
  };
  app.on(["settings", "model", "data", "run"], update);
  const code = h("code", {});
  const explain = () => {
    const { gguf: file = false, dir = "" } = app.model ?? {};
    const model = file ? dir.split("/").at(-1) : base.input.value.trim();
    const quant = app.settings.method === "qlora" ? " --quant nf4" : "";
    const folder = adapterFolder(trained);
    const lines = [
      "from peft import AutoPeftModelForCausalLM",
      `model = AutoPeftModelForCausalLM.from_pretrained("${folder}")`,
      "",
      "# in a terminal",
      `loraine chat --model ${model} --adapter ${folder}${quant}`,
      `llama-cli -m ${file ? model : "MODEL.gguf"} --lora ${folder}.gguf`,
    ];
    code.textContent = lines.join("\n");
  };
  base.input.oninput = () => {
    explain();
    card.renew();
  };
  /** The name of the model that the result is of. */
  let trained = "";
  let shownFor: string | undefined;
  app.on(["run"], () => {
    if (!app.run.hasResult || shownFor === app.run.id || app.model === undefined) return;
    shownFor = app.run.id;
    trained = app.model.name;
    base.input.value = app.model.base;
    explain();
    card.renew();
  });
  const original = h(
    "p",
    { class: "hint" },
    "PEFT needs the original model, not its GGUF file. Enter its name on the hub as the base model, such as HuggingFaceTB/SmolLM2-135M-Instruct.",
  );
  app.on(["model", "run"], () => {
    show(original, app.model?.gguf === true);
    show(merged, app.model?.gguf === true);
  });
  const demo = h("p", { class: "hint" }, "The built-in model is written to loraine-demo/model by the command “loraine demo”.");
  app.on(["model", "run"], () => show(demo, app.model?.source.kind === "demo"));
  return h(
    "div",
    { class: "take-along" },
    h("h3", {}, "Download"),
    h(
      "p",
      {},
      "The zip holds one folder: the adapter in PEFT’s format, the settings (run.toml), the metrics and the picture of the loss. For llama.cpp, the adapter is one GGUF file.",
    ),
    h("div", { class: "fields link" }, base.element, h("div", { class: "field-button buttons" }, download, gguf, merged)),
    progress.element,
    original,
    h("pre", { tabIndex: 0, aria: { label: "How the adapter is loaded" } }, code),
    demo,
    card.element,
    publishPanel(app, () => ({ ...chosen(), card: card.text() })),
    notices.element,
    h("div", { class: "fields link" }, address.element, h("div", { class: "field-button buttons" }, copy, copied)),
  );
}

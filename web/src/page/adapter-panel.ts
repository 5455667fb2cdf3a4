/** The adapters that a question goes to: that of the result, those of earlier runs, and those that were opened from a file or a hub. */

import type { App } from "../app";
import { DEFAULT_HUB, parseModelAddress } from "../recipe";
import { ariaLabel, h, show } from "./dom";
import { droppedFolder, isAdapterFile, looseFiles } from "./folder";
import { button, checkbox, dropPlace, field, noticePlace, progressBar } from "./parts";

export function adapterPanel(app: App): HTMLElement {
  const list = h("ul", { class: "adapters" });
  const chosen = h("div", { hidden: true }, h("h3", {}, "Adapters to compare"), list);
  const draw = () => {
    const known = app.knownAdapters();
    show(chosen, known.length > 1 || known.some(({ opened }) => opened));
    list.replaceChildren(
      ...known.map(({ dir, title, base, opened }) => {
        const box = checkbox(title, (checked) => app.compare(dir, checked));
        box.input.checked = app.compared.has(dir);
        const hint = h("span", { class: "hint" }, base === "" ? "" : `for ${base}`);
        const forget = button("Remove", () => void app.forgetAdapter(dir), "quiet");
        ariaLabel(forget, `Remove ${title}`);
        return h("li", {}, box.element, hint, opened && forget);
      }),
    );
  };
  app.on(["adapters", "saved", "run", "model"], draw);
  return h("div", { class: "adapter-panel" }, chosen, opener(app));
}

/** Opens an adapter of somebody else's. */
function opener(app: App): HTMLElement {
  const notices = noticePlace();
  const progress = progressBar("Progress of the adapter");
  const input = h("input", { type: "file", accept: ".zip,.json,.safetensors,.jinja", multiple: true });
  const take = (name: string | undefined, files: { name: string; file: File }[]) => {
    if (files.length > 0) void opened(() => app.openAdapter(name ?? "adapter", files));
  };
  const opened = async (open: () => Promise<void>) => {
    notices.clear();
    await app.trying(open, (failure) => notices.fail(failure));
    show(progress.element, false);
  };
  input.onchange = () => {
    const found = looseFiles(input.files ?? [], isAdapterFile);
    take(found?.name, found?.files ?? []);
    input.value = "";
  };
  const text = "Drop an adapter here: the zip of this page, or a folder with adapter_config.json and adapter_model.safetensors.";
  const { element: drop } = dropPlace(
    text,
    [["Choose a zip, or the files", input]],
    (transfer) => void droppedFolder(transfer, isAdapterFile).then((found) => take(found?.name, found?.files ?? [])),
  );
  const address = field(
    "Adapter on a hub",
    h("input", { type: "text", placeholder: "owner/name", autocomplete: "off", spellcheck: false }),
    "owner/name or owner/name@revision, or the address of its page. The page asks that hub alone.",
  );
  const fetchIt = () => {
    const found = parseModelAddress(address.input.value);
    address.problem(found === undefined || found.file !== undefined ? "Enter a name such as owner/name." : "");
    if (found === undefined || found.file !== undefined) return;
    const tell = (what: string, done: number, total: number) => progress.set({ what, done, total });
    void opened(() => app.fetchAdapter({ ...found, base: found.base ?? app.chosen.hub?.base ?? DEFAULT_HUB }, tell));
  };
  address.input.onkeydown = (event) => {
    if (event.key === "Enter") fetchIt();
  };
  const ask = button("Fetch", fetchIt);
  ariaLabel(ask, "Fetch the adapter");
  return h(
    "details",
    {},
    h("summary", {}, "Open another adapter"),
    drop,
    h("div", { class: "fields link" }, address.element, h("div", { class: "field-button" }, ask)),
    progress.element,
    notices.element,
  );
}

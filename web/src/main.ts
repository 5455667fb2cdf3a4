import "./style/base.css";
import "./style/layout.css";
import "./style/parts.css";
import "./style/sections.css";
import "./style/small.css";
import { App } from "./app";
import { Engine, failureOf } from "./engine";
import { offline } from "./offline";
import { dataSection } from "./page/data-section";
import { h } from "./page/dom";
import { modelSection } from "./page/model-section";
import { noticePlace } from "./page/parts";
import { resultSection } from "./page/result-section";
import { runSection } from "./page/run-section";
import { settingsSection } from "./page/settings-section";
import { noGpu, savedRuns, top } from "./page/top";
import { fromFragment } from "./recipe";

async function start(): Promise<void> {
  const page = document.getElementById("page") as HTMLElement;
  const engine = new Engine();
  let defaults: Awaited<ReturnType<typeof engine.call<"defaultSettings">>>;
  try {
    defaults = await engine.call("defaultSettings", null);
  } catch (error) {
    const notices = noticePlace();
    notices.fail(failureOf(error));
    page.replaceChildren(h("main", {}, h("h1", {}, "loraine could not start"), notices.element));
    return;
  }
  const app = new App(engine, defaults);
  const model = modelSection(app);
  const news = noticePlace();
  page.replaceChildren(
    top(app),
    h(
      "main",
      {},
      news.element,
      noGpu(app),
      savedRuns(app, model.offerFolder),
      model.element,
      dataSection(app),
      settingsSection(app),
      runSection(app),
      resultSection(app),
    ),
    h(
      "footer",
      {},
      h(
        "p",
        {},
        "loraine is free software under the MIT license. This page asks no server for anything but its own files and the model address that you type.",
      ),
    ),
  );
  app.changed("gpu", "settings", "run");
  offline(news);
  void app.askForGpu();
  void app.listSaved();
  void app.listCached();

  const recipe = fromFragment(location.hash);
  await app.openDemo();
  await app.openData({ kind: "example" }, null);
  if (recipe === undefined) return;
  app.applyRecipe(recipe);
  // A link opens nothing over the network: the address waits for the button.
  if (recipe.model?.kind === "hub") {
    const { base, id, revision } = recipe.model.address;
    model.offerHub(base, revision === "main" ? id : `${id}@${revision}`);
  } else if (recipe.model?.kind === "folder") model.offerFolder();
}

void start();

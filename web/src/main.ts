import "./style/base.css";
import "./style/layout.css";
import "./style/parts.css";
import "./style/sections.css";
import "./style/small.css";
import { App } from "./app";
import { Engine, failureOf } from "./engine";
import { offline } from "./offline";
import { announce } from "./page/announce";
import { dataSection } from "./page/data-section";
import { h, setText, verbatim } from "./page/dom";
import { lessonSection } from "./page/lesson-section";
import { modelSection } from "./page/model-section";
import { otherTab } from "./page/other-tab";
import { field, goTo, noticePlace, select } from "./page/parts";
import { resultSection } from "./page/result-section";
import { runBar } from "./page/run-bar";
import { type Place, runSection } from "./page/run-section";
import { settingsSection } from "./page/settings-section";
import { noGpu, savedRuns, softwareGpu, top } from "./page/top";
import { fromFragment, modelName } from "./recipe";
import { choose, LANGUAGES, language, loadLanguage } from "./texts";

async function start(): Promise<void> {
  const page = document.getElementById("page") as HTMLElement;
  const head = page.querySelector("header") as HTMLElement;
  const engine = new Engine();
  await loadLanguage();
  for (const element of head.querySelectorAll<HTMLElement>("h1, .lead"))
    setText(element, (element.textContent ?? "").trim().replace(/\s+/g, " "));
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
  const data = dataSection(app);
  const settings = settingsSection(app);
  const run = runSection(app, (place) => show(place));
  const result = resultSection(app, () => show("settings"));
  const bar = runBar(app);
  const news = noticePlace();
  const show = (place: Place) => {
    const sections = { top: { element: head, focus: () => {} }, model, data, settings };
    const { element, focus } = sections[place];
    goTo(element, false);
    focus();
  };
  top(app, head, {
    run: () => goTo(run.element, false),
    result: () => goTo(result.heading),
    model: () => show("model"),
  });
  page.querySelector("main")?.remove();
  page.append(
    h(
      "main",
      {},
      news.element,
      noGpu(app),
      softwareGpu(app),
      otherTab(app),
      savedRuns(app, model.offerFolder),
      model.element,
      data.element,
      settings.element,
      run.element,
      result.element,
      lessonSection(app),
    ),
    h(
      "footer",
      {},
      h(
        "p",
        {},
        "loraine is free software under the MIT license. This page asks no server for anything but its own files and the model address that you type.",
      ),
      languageChoice(),
    ),
    bar.element,
  );
  announce(app);
  followRun(app, bar.focus);
  app.onFinished = () => {
    goTo(result.heading);
    void result.ask();
  };
  app.changed("gpu", "settings", "run");
  offline(news);
  void app.askForGpu();
  void app.listSaved();
  void app.listCached();
  void app.listAdapters();

  const recipe = fromFragment(location.hash);
  await app.openDemo();
  await app.openData({ kind: "example" }, null);
  if (recipe === undefined) return;
  app.applyRecipe(recipe);
  // A link opens nothing over the network: the address waits for the button.
  if (recipe.model?.kind === "hub") {
    model.offerHub(recipe.model.address.base, modelName(recipe.model.address));
  } else if (recipe.model?.kind === "folder") model.offerFolder();
}

/** The languages by their own names. */
function languageChoice(): HTMLElement {
  const made = field("Language", select([], choose));
  const option = ([value, name]: [string, string]) => h("option", { value, lang: value }, verbatim(name));
  made.input.append(...Object.entries(LANGUAGES).map(option));
  made.input.value = language();
  return made.element;
}

/** When a run begins, the button that began it goes: the focus moves to the run's own controls, and the run comes into view. */
function followRun(app: App, focusControls: () => void): void {
  let wasActive = false;
  app.on(["run"], () => {
    const begins = app.run.active && !wasActive;
    wasActive = app.run.active;
    if (!begins) return;
    document.getElementById("run")?.scrollIntoView({ block: "start" });
    focusControls();
  });
}

void start();

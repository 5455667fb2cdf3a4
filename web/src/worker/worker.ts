/** The worker that owns the engine and the GPU: it answers the page's calls. */

import type { CallMessage, CallName, Calls, Notice, WorkerMessage } from "../protocol";
import type { RunSettings } from "../types";
import * as adapters from "./adapters";
import { glimpse, openData, reading } from "./data";
import { describe } from "./failure";
import { answer, cancelAnswer } from "./generation";
import * as lesson from "./lesson";
import * as models from "./models";
import * as runs from "./runs";
import { cancelPublish, publish } from "./publish";
import { adapterGguf, adapterZip, mergedGguf, modelCard } from "./take-along";
import * as training from "./training";
import { loraine, ready } from "./wasm";

type Handlers = {
  [Name in CallName]: (
    request: Calls[Name]["request"],
    notify: (notice: Notice) => void,
  ) => Promise<Calls[Name]["answer"]> | Calls[Name]["answer"];
};

/** For calls that have nothing to say. */
function nothing(action: () => void): null {
  action();
  return null;
}

const handlers: Handlers = {
  adapter: async () => {
    // The engine asks too, but a missing `gpu` is no error to it worth waiting for the module.
    if (navigator.gpu === undefined) return null;
    const adapter = await loraine.adapter();
    return adapter === undefined ? null : { ...adapter, software: await isSoftware(adapter.name) };
  },
  defaultSettings: () => loraine.defaultSettings() as RunSettings,
  openDemo: () => models.openDemo(),
  openFolder: ({ name, files }) => models.openFolder(name, files),
  lookUp: ({ address, token, settings }, notify) =>
    models.lookUp(address, token, settings, (progress) => notify({ type: "progress", progress })),
  openHub: ({ address, token }, notify) => models.openHub(address, token, (progress) => notify({ type: "progress", progress })),
  cancelDownload: () => nothing(models.cancelDownload),
  cachedModels: () => models.cachedModels(),
  forgetModel: async (address) => {
    await models.forget(address);
    return null;
  },
  openData: ({ source, content }) => openData(source, content),
  inspect: ({ settings, count }, notify) => reading(notify, () => loraine.inspectData(settings, count)),
  glimpse: ({ settings, count }) => glimpse(settings, count),
  estimate: ({ settings, seqLen }) => loraine.estimate(settings, seqLen),
  train: (request, notify) => training.train(request, notify),
  pause: () => nothing(training.pause),
  continue: () => nothing(training.resume),
  stop: () => nothing(training.stop),
  savedRuns: () => runs.savedRuns(),
  restoreRun: (id, notify) => training.restore(id, notify),
  discardRun: async (id) => {
    await runs.discard(id);
    return null;
  },
  adapterZip: (request) => adapterZip(request),
  modelCard: (request) => modelCard(request),
  publish: (request, notify) => publish(request, (progress) => notify({ type: "progress", progress })),
  cancelPublish: () => nothing(cancelPublish),
  adapterGguf: (request) => adapterGguf(request),
  openAdapter: ({ name, files }) => adapters.openAdapter(name, files),
  fetchAdapter: ({ address, token }, notify) => adapters.fetchAdapter(address, token, (progress) => notify({ type: "progress", progress })),
  openedAdapters: () => adapters.openedAdapters(),
  forgetAdapter: async (dir) => {
    await adapters.forgetAdapter(dir);
    return null;
  },
  mergedGguf: (request, notify) => mergedGguf(request, (progress) => notify({ type: "progress", progress })),
  answer: (request, notify) => answer(request, notify),
  cancelAnswer: () => nothing(cancelAnswer),
  lessonBlock: (request) => lesson.lessonBlock(request),
  lessonUpdate: (request) => lesson.lessonUpdate(request),
  lessonMemory: () => lesson.lessonMemory(),
};

/** Whether the browser computes on the processor, as it does where it has no GPU to use. */
async function isSoftware(name: string): Promise<boolean> {
  const info = (await navigator.gpu.requestAdapter())?.info as (GPUAdapterInfo & { isFallbackAdapter?: boolean }) | undefined;
  const told = [name, info?.vendor, info?.architecture, info?.device, info?.description].join(" ");
  return info?.isFallbackAdapter === true || /swiftshader|llvmpipe|lavapipe|softpipe|basic render/i.test(told);
}

function send(message: WorkerMessage): void {
  self.postMessage(message);
}

self.onmessage = async ({ data: { call, name, request } }: MessageEvent<CallMessage>) => {
  const notify = (notice: Notice) => send({ call, notice });
  try {
    await ready();
    const handler = handlers[name] as (request: unknown, notify: (notice: Notice) => void) => unknown;
    send({ call, answer: await handler(request, notify) });
  } catch (error) {
    send({ call, failure: describe(error) });
  }
};

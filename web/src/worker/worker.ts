/** The worker that owns the engine and the GPU: it answers the page's calls. */

import type { CallMessage, CallName, Calls, Notice, WorkerMessage } from "../protocol";
import type { RunSettings } from "../types";
import { openData } from "./data";
import { describe } from "./failure";
import { answer, cancelAnswer } from "./generation";
import * as models from "./models";
import * as runs from "./runs";
import * as training from "./training";
import { loraine, ready } from "./wasm";
import { adapterZip } from "./zip";

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
    return (await loraine.adapter()) ?? null;
  },
  defaultSettings: () => loraine.defaultSettings() as RunSettings,
  openDemo: () => models.openDemo(),
  openFolder: ({ name, files }) => models.openFolder(name, files),
  openHub: (address, notify) => models.openHub(address, (progress) => notify({ type: "progress", progress })),
  cancelDownload: () => nothing(models.cancelDownload),
  cachedModels: () => models.cachedModels(),
  forgetModel: async (address) => {
    await models.forget(address);
    return null;
  },
  openData: ({ source, content }) => openData(source, content),
  inspect: ({ settings, count }) => loraine.inspectData(settings, count),
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
  adapterZip: (run) => adapterZip(run),
  answer: (request, notify) => answer(request, notify),
  cancelAnswer: () => nothing(cancelAnswer),
};

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

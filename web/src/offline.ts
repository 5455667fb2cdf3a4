/** The service worker: it keeps the page's own files, so that the page opens without a network. */

import { trustedScriptUrl } from "./trusted";
import { button, type NoticePlace } from "./page/parts";

export function offline(news: NoticePlace): void {
  const workers = navigator.serviceWorker;
  if (workers === undefined) return;
  const url = trustedScriptUrl("./service-worker.js") as unknown as string;
  void workers.register(url).then(
    (registration) => {
      const offer = () => {
        const waiting = registration.waiting;
        if (waiting === null || workers.controller === null) return;
        const reload = button("Reload", () => waiting.postMessage("take over"), "primary");
        workers.addEventListener("controllerchange", () => location.reload(), { once: true });
        news.say("A new version of this page is ready.", reload);
      };
      offer();
      registration.addEventListener("updatefound", () => registration.installing?.addEventListener("statechange", offer));
    },
    // Without it the page works as long as the network does.
    () => undefined,
  );
}

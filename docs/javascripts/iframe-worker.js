// The search runs in a worker, and browsers start no worker on a page that was opened from disk.
// There, a hidden frame takes its place: it loads the same script and exchanges the same messages.
//
// The file's name is not free: the `offline` plugin adds a script from the network unless one with
// "iframe-worker" in its name is listed in mkdocs.yml.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.frame = frame;
      this.loaded = new Promise((resolve, reject) => {
        // Firefox replaces the document of a new frame once, before it fires this event.
        frame.addEventListener("load", () => {
          const inner = frame.contentWindow;
          inner.postMessage = (data) => this.receive(data);
          const script = inner.document.createElement("script");
          script.addEventListener("load", () => resolve(inner));
          script.addEventListener("error", () => reject(new Error(`cannot load ${url}`)));
          script.src = new URL(url, document.baseURI).href;
          inner.document.head.append(script);
        }, { once: true });
      });
      document.body.append(frame);
    }

    receive(data) {
      this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) }));
    }

    postMessage(data) {
      const copy = structuredClone(data);
      this.loaded.then(
        (inner) => inner.dispatchEvent(new inner.MessageEvent("message", { data: copy })),
        (error) => this.dispatchEvent(new ErrorEvent("error", { error, message: error.message })),
      );
    }

    terminate() {
      this.frame.remove();
    }
  };
}

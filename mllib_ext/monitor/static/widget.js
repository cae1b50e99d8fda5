// The view of a run in a notebook. Follows view.js in one file: mllib_ext/monitor/widget.py.

export default () => {
  let run = new Run("fit"), told = "", silent;
  const views = new Set(), waiting = new Map(); // commands that the kernel has not answered yet

  const changed = () => { for (const view of views) view.changed(); };

  return {
    initialize({ model }) {
      // What other pages asked for may arrive first: events count from the answer to this word on.
      const word = crypto.randomUUID?.() ?? String(Math.random());
      model.on("msg:custom", (message) => {
        if (message.kind === "begin" && message.word === word) {
          told = word;
          run.description = message.description;
        }
        if (message.kind === "events" && told) for (const event of message.events) run.take(event);
        if (message.kind === "answer" && waiting.has(message.number)) {
          const { took, refused } = waiting.get(message.number);
          waiting.delete(message.number);
          message.error === undefined ? took(message.key) : refused(new Error(`refused: ${message.error}`));
        }
        changed();
      });
      const ask = () => model.send({ kind: "begin", word });
      ask();
      silent = setInterval(() => (told ? clearInterval(silent) : ask()), 2000);
      return () => clearInterval(silent);
    },

    render({ model, el }) {
      const send = (_, command, values) => new Promise((took, refused) => {
        const number = `${Date.now()} ${Math.random()}`;
        waiting.set(number, { took, refused });
        model.send({ kind: "command", number, command, values });
      });
      const root = document.createElement("div");
      root.dataset.lmSuppressShortcuts = "true"; // keys pressed here are no commands to JupyterLab
      el.append(root);
      const view = new View(root, send);
      views.add(view);
      view.show(run);
      // Jupyter and VS Code have themes of their own, whatever the system's is.
      const themed = () => {
        const { dataset, classList } = document.body, light = dataset.jpThemeLight;
        const dark = light === "false" || classList.contains("vscode-dark");
        const bright = light === "true" || classList.contains("vscode-light");
        dark || bright ? (root.dataset.theme = dark ? "dark" : "light") : delete root.dataset.theme;
        view.restyle();
      };
      const watcher = new MutationObserver(themed);
      watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
      themed();
      return () => { watcher.disconnect(); views.delete(view); view.close(); };
    },
  };
};

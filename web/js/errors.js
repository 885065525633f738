/**
 * The sentence with which a node of the pack stopped, on pages that show it behind a click alone.
 */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const OURS = "MagiCapture"; // what our nodes' ids begin with
const LONGEST = 400; // characters; the whole text is in the error's details
const LONGEST_ANSWER = 60000; // milliseconds; the server may take as long to refuse a workflow

/** Whether this page lists errors in a panel; others open a dialog with the text. */
const hasPanel = () => app.extensionManager.setting.get("Comfy.RightSidePanel.ShowErrorsTab");

const titleOf = (id) => LiteGraph.registered_node_types[id]?.title ?? id;

/** A message without the title that the server puts before it, which is English on every page. */
function withoutTitle(id, message) {
  const [title] = message.split(": ", 1);
  const words = title.replace(/\(.*?\)|MagiCapture/g, "").match(/[A-Za-z0-9]+/g) ?? [];
  const named = OURS + words.map((word) => word[0].toUpperCase() + word.slice(1)).join("");
  return named === id ? message.slice(title.length + 2) : message;
}

/** Show what a node said: the first line, which says what to do. */
function show(id, text) {
  const line = text.split("\n")[0];
  const detail = line.length > LONGEST ? `${line.slice(0, LONGEST)} ...` : line;
  app.extensionManager.toast.add({ severity: "error", summary: titleOf(id), detail, life: 30000 });
}

/** What our nodes' `validate_inputs` said. */
function showRefused(nodes) {
  for (const { class_type: id, errors } of Object.values(nodes)) {
    const said = errors.filter((error) => error.type === "custom_validation_failed");
    if (!id.startsWith(OURS) || !said.length) continue;
    // ComfyUI writes the input's name and " - " before it.
    for (const { details } of said) show(id, details.replace(/^\w+ - /, ""));
  }
}

app.registerExtension({
  name: "MagiCapture.Errors",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      const id = detail.node_type;
      if (!hasPanel() || !id?.startsWith(OURS)) return;
      show(id, withoutTitle(id, detail.exception_message.trim()));
    });

    // No event tells of what was refused before anything ran.
    let watch;
    api.addEventListener("promptQueueing", () => {
      clearInterval(watch);
      if (!hasPanel()) return;
      const before = app.lastNodeErrors;
      const end = Date.now() + LONGEST_ANSWER;
      watch = setInterval(() => {
        const refused = app.lastNodeErrors;
        if (Date.now() < end && (!refused || refused === before)) return;
        clearInterval(watch);
        if (refused && refused !== before) showRefused(refused);
      }, 200);
    });
  },
});

/**
 * Photos into a folder below ComfyUI's input folder, from the page: a button under Load Photo Set,
 * files dropped on it, and the same on a subgraph's node that shows the folder as its own widget.
 *
 * Nothing here is saved: workflows are the same with and without these buttons.
 */

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const NODE = "MagiCaptureLoadPhotoSet";
const FOLDER = "folder";
const UPLOAD = "magicapture_upload"; // what the buttons' names begin with

/** The folder input as the server defines it: its options, its default, the endings it reads. */
let definition;

// -- which widgets are folders ----------------------------------------------------------------

/** Whether a subgraph's input ends, on whatever level, at the folder of a Load Photo Set. */
function leadsToFolder(node, name) {
  const slot = node.subgraph.inputNode.slots.find((each) => each.name === name);
  return (slot?.linkIds ?? []).some((id) => {
    const link = node.subgraph.getLink(id);
    const inner = link && node.subgraph.getNodeById(link.target_id);
    const input = inner?.inputs[link.target_slot];
    if (!input) return false;
    if (inner.subgraph) return leadsToFolder(inner, input.name);
    return inner.comfyClass === NODE && input.widget?.name === FOLDER;
  });
}

/** The widgets of a node that choose a folder of photos. */
function foldersOf(node) {
  if (node.comfyClass === NODE) return node.widgets.filter((each) => each.name === FOLDER);
  if (!node.subgraph) return [];
  return node.inputs
    .filter((input) => leadsToFolder(node, input.name))
    .map((input) => node.getWidgetFromSlot(input))
    .filter(Boolean);
}

const labelOf = (widget) => widget.label ?? widget.name;

/** The sets there are. */
const sets = () => definition.options.filter((each) => each !== definition.default);

/** Every node of the workflow, those inside subgraphs as well. */
function everyNode() {
  const root = app.rootGraph ?? app.graph.rootGraph ?? app.graph;
  return [root, ...(root.subgraphs?.values() ?? [])].flatMap((graph) => graph.nodes);
}

/** Put a new set into every list of sets. */
function list(name) {
  const lists = everyNode().flatMap(foldersOf).map((widget) => widget.options.values);
  for (const options of [definition.options, ...lists]) {
    if (Array.isArray(options) && !options.includes(name)) options.push(name);
  }
}

// -- the name of a set ------------------------------------------------------------------------

/** A name that any system takes for a folder. */
function plain(name) {
  const kept = [...name.trim()].map((c) => (c < " " || '\\/:*?"<>|'.includes(c) ? "-" : c));
  return kept.join("").replace(/^\.+|\.+$/g, "").trim();
}

/** A name no set has yet: what is chosen already, or what the widget is called. */
function suggested(widget) {
  const chosen = widget.value && widget.value !== definition.default;
  const base = plain(String(chosen ? widget.value : labelOf(widget).split(/[_ ]/)[0]));
  const taken = new Set(sets().map((each) => each.toLowerCase()));
  let name = base;
  for (let number = 2; taken.has(name.toLowerCase()); number += 1) name = `${base}-${number}`;
  return name;
}

/** Ask for the set's name; null where the user steps back. */
async function ask(widget, photos) {
  const { dialog } = app.extensionManager;
  const there = sets();
  const count = photos === 1 ? "1 file" : `${photos} files`;
  const answer = await dialog.prompt({
    title: `Upload ${count}`,
    message: there.length
      ? `Name of the photo set. The name of one that is there adds to it: ${there.join(", ")}`
      : "Name of the photo set",
    defaultValue: suggested(widget),
  });
  if (answer === null || answer === undefined) return null;
  const same = there.find((each) => each.toLowerCase() === answer.trim().toLowerCase());
  if (same === undefined) return plain(answer) || null;
  const agreed = await dialog.confirm({
    title: "Add to a photo set",
    message: `There is a set "${same}" already. Add ${count} to it?`,
  });
  return agreed ? same : null;
}

// -- sending ----------------------------------------------------------------------------------

const isTaken = (file) =>
  definition.endings.some((ending) => file.name.toLowerCase().endsWith(ending));

function say(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: 10000 });
}

/** Send one file to ComfyUI, which keeps an older file of the same name; its name there. */
async function send(file, folder) {
  const body = new FormData();
  body.append("image", file);
  body.append("subfolder", folder);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (answer.status !== 200) throw new Error(`${answer.status} ${answer.statusText}`);
  return (await answer.json()).name;
}

/** Ask for a name, send the files and choose the set; say what went wrong. */
async function upload(node, widget, given) {
  const files = given.filter(isTaken);
  if (!files.length) {
    say("warn", "No photo among these files", `Read are ${definition.endings.join(", ")}.`);
    return;
  }
  const name = await ask(widget, files.length);
  if (name === null) return;
  const button = buttonOf(node, widget);
  const label = button.label;
  const renamed = [];
  let sent = 0;
  try {
    for (const file of files) {
      button.label = `uploading ${sent + 1} of ${files.length}`;
      node.setDirtyCanvas(true, true);
      const stored = await send(file, name);
      if (stored !== file.name) renamed.push(`${file.name} is now ${stored}`);
      sent += 1;
    }
  } catch (error) {
    say("error", `${files[sent].name} could not be uploaded`, String(error.message ?? error));
  } finally {
    button.label = label;
  }
  if (renamed.length) say("warn", "Files of these names were there", renamed.join("; "));
  if (!sent) return;
  list(name);
  widget.value = name;
  widget.callback?.(name, app.canvas, node);
  node.setDirtyCanvas(true, true);
}

/** Let the user choose files. */
function choose(node, widget) {
  const input = document.createElement("input");
  input.type = "file";
  input.multiple = true;
  input.accept = ["image/*", ...definition.endings.map((each) => each.slice(each.lastIndexOf(".")))].join();
  input.onchange = () => upload(node, widget, [...input.files]);
  input.click();
}

// -- the buttons ------------------------------------------------------------------------------

const nameOfButton = (widget) => `${UPLOAD}:${widget.name}`;

const buttonOf = (node, widget) =>
  node.widgets.find((each) => each.name === nameOfButton(widget));

/** Give a node the buttons that it lacks, and take those away whose folder is gone. */
function equip(node) {
  const folders = foldersOf(node);
  const names = new Set(folders.map(nameOfButton));
  const old = (node.widgets ?? []).filter((each) => each.name?.startsWith(`${UPLOAD}:`));
  for (const button of old) {
    if (!names.has(button.name)) node.ensureWidgetRemoved(button);
  }
  for (const { name } of folders) {
    const folder = () => foldersOf(node).find((each) => each.name === name);
    const widget = folder();
    if (buttonOf(node, widget)) continue;
    const label = node.subgraph ? `upload ${labelOf(widget).replaceAll("_", " ")}` : "upload photos";
    const open = () => choose(node, folder());
    const button = node.addWidget("button", nameOfButton(widget), "", open, { serialize: false });
    button.label = button.options.label = label;
    button.serialize = false;
  }
  if (folders.length && !node.onDragDrop) acceptDrops(node);
  node.setSize?.(node.size.map((side, i) => Math.max(side, node.computeSize()[i])));
}

/** Take files that are dropped on a node; of several folders, that whose widget is nearest. */
function acceptDrops(node) {
  node.onDragOver = (event) => [...event.dataTransfer.items].some((each) => each.kind === "file");
  node.onDragDrop = (event) => {
    const files = [...event.dataTransfer.files];
    const folders = foldersOf(node);
    if (!files.length || !folders.length) return false;
    const below = (event.canvasY ?? app.canvas.graph_mouse[1]) - node.pos[1];
    const away = (widget) => Math.abs((widget.y ?? 0) - below);
    const nearest = folders.reduce((best, each) => (away(each) < away(best) ? each : best));
    upload(node, nearest, files);
    return true;
  };
}

app.registerExtension({
  name: "MagiCapture.Upload",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (nodeData.name === NODE) definition = nodeData.input.required[FOLDER][1];
  },

  nodeCreated(node) {
    if (node.comfyClass === NODE) {
      equip(node);
    } else if (node.subgraph) {
      // What a subgraph's node shows changes when it is configured, and when its inside does.
      const later = () => queueMicrotask(() => node.graph && equip(node));
      const configured = node.onConfigure;
      node.onConfigure = function (...args) {
        configured?.apply(this, args);
        later();
      };
      node.subgraph.events.addEventListener("widget-promoted", later);
      node.subgraph.events.addEventListener("widget-demoted", later);
      later();
    }
  },
});

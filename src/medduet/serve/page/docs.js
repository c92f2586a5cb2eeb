// The page at "/docs": openapi.json as tables.
"use strict";

function element(tag, text = "", kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = kind;
  return made;
}

function table(head, rows) {
  const made = element("table");
  [head, ...rows].forEach((cells, place) => {
    const row = element("tr");
    row.append(...cells.map((cell) => element(place ? "td" : "th", cell ?? "")));
    made.append(row);
  });
  const scroll = element("div", "", "scroll");
  scroll.append(made);
  return scroll;
}

function type(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(type).join(" or ");
  if (schema.enum) return schema.enum.join(", ");
  if (schema.prefixItems) return `[${schema.prefixItems.map(type).join(", ")}]`;
  if (schema.type === "array") return "list of " + type(schema.items);
  const values = schema.additionalProperties;
  if (schema.type === "object" && values) return "name: " + type(values);
  return schema.format ? `${schema.type} (${schema.format})` : schema.type ?? "";
}

function route(path, method, about) {
  const part = element("section", "", "");
  part.className = "api";
  part.style.display = "block";
  part.append(element("h3", `${method.toUpperCase()} ${path}`), element("p", about.description));
  if (about.requestBody) {
    const kinds = Object.keys(about.requestBody.content).join(" or ");
    part.append(element("p", `Body: ${about.requestBody.description} ${kinds}.`));
  }
  if (about.parameters?.length) {
    part.append(table(["option", "type", "default", ""], about.parameters.map((each) => [
      each.name, type(each.schema), String(each.schema.default ?? ""), each.description,
    ])));
  }
  part.append(table(["status", "", "content"], Object.entries(about.responses).map(
    ([status, each]) => [
      status, each.description, type(Object.values(each.content ?? {})[0]?.schema),
    ],
  )));
  return part;
}

function schema(name, about) {
  const part = element("div", "", "api");
  part.append(element("h3", name), element("p", about.description ?? ""));
  part.append(table(["field", "type", ""], Object.entries(about.properties ?? {}).map(
    ([field, each]) => [field, type(each), each.description],
  )));
  return part;
}

const api = await (await fetch("openapi.json")).json();
const here = new URL("predict", location.href);
document.getElementById("example").textContent = `curl -F file=@image.png "${here}?mask=rle"`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    document.getElementById("routes").append(route(path, method, about));
  }
}
for (const [name, about] of Object.entries(api.components.schemas)) {
  if (about.properties && !/^(HTTP)?Validation|^Body_/.test(name)) {
    document.getElementById("schemas").append(schema(name, about));
  }
}

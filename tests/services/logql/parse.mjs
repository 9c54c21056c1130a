// Reads a JSON array of LogQL expressions from standard input, and writes one of the places that are no LogQL.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { parser } = createRequire(`${process.cwd()}/`)("@grafana/lezer-logql");
const wrong = [];
for (const expression of JSON.parse(readFileSync(0, "utf8"))) {
  parser.parse(expression).iterate({
    enter(node) {
      if (node.type.isError) wrong.push(`${expression.slice(0, node.from)} HERE ${expression.slice(node.from)}`);
    },
  });
}
console.log(JSON.stringify(wrong));

// Classify texts with transformers.js from a bundle, in each dtype, and compare the labels with distill's.
//
//   npm install @huggingface/transformers
//   distill predict BUNDLE --file texts.txt --json > answers.json
//   node transformers_js.mjs BUNDLE texts.txt answers.json [DTYPE ...]
//
// texts.txt has one text a line. Nothing is fetched: remote models are off. For each dtype (default: fp32, fp16, int8 and
// q8) it prints how many labels are distill's, and the largest difference of a score. Exit status 1: a label differs.
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";

import { env, pipeline } from "@huggingface/transformers";

const [bundle, file, answers, ...named] = process.argv.slice(2);
const folder = resolve(bundle);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);

const texts = readFileSync(file, "utf8").split("\n").filter((line) => line.trim());
const expected = JSON.parse(readFileSync(answers, "utf8"));
let differ = 0;
for (const dtype of named.length ? named : ["fp32", "fp16", "int8", "q8"]) {
  const began = performance.now();
  const classify = await pipeline("text-classification", basename(folder), { dtype });
  const loaded = performance.now();
  let same = 0;
  let largest = 0;
  for (const [index, text] of texts.entries()) {
    const [{ label, score }] = await classify(text);
    same += label === expected[index].label;
    if (label === expected[index].label) largest = Math.max(largest, Math.abs(score - expected[index].score));
  }
  const each = (performance.now() - loaded) / texts.length;
  console.log(
    `${dtype}: ${same} of ${texts.length} labels as distill's, score differs by at most ${largest.toExponential(1)}; ` +
      `loaded in ${(loaded - began).toFixed(0)} ms, ${each.toFixed(1)} ms a text`,
  );
  differ += texts.length - same;
}
process.exit(differ ? 1 : 0);
